"""Our denoiser against diffusers' own model: small random sizes, one device and layouts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.tolerances import LAYOUT, PARITY, relative_error
from tests.transformer.originals import make_original, make_ours, padded
from wan_tpu.geometry import Compression, Geometry
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.transformer.patches import patchify, unpatchify

SMALL = TransformerConfig(
    num_attention_heads=8,
    attention_head_dim=12,
    in_channels=4,
    out_channels=4,
    text_dim=32,
    freq_dim=32,
    ffn_dim=96,
    num_layers=2,
)
CONFIGS = {
    "eight heads": (SMALL, Geometry(width=80, height=48, num_frames=9)),
    "odd sizes": (
        dataclasses.replace(
            SMALL, num_attention_heads=5, attention_head_dim=24, ffn_dim=100, num_layers=3, eps=1e-4
        ),
        Geometry(width=112, height=16, num_frames=13),
    ),
    "no cross norm, one frame, other patch": (
        dataclasses.replace(
            SMALL, num_attention_heads=3, cross_attn_norm=False, patch_size=(1, 1, 2)
        ),
        Geometry(width=48, height=40, num_frames=1, compression=Compression(patch=(1, 1, 2))),
    ),
}
TIMESTEP = 537.0


def make_inputs(config: TransformerConfig, geometry: Geometry, batch: int = 2):
    torch.manual_seed(1)
    shape = (geometry.latent_frames, geometry.latent_height, geometry.latent_width)
    latents = torch.randn(1, config.in_channels, *shape)
    text = torch.randn(batch, 512, config.text_dim)
    for index, length in enumerate((9, 30)[:batch]):
        text[index, length:] = 0
    return latents, text


def predict_original(model, latents, text):
    batch = len(text)
    with torch.no_grad():
        return model(
            latents.expand(batch, -1, -1, -1, -1),
            torch.full((batch,), TIMESTEP),
            text,
            return_dict=False,
        )[0].numpy()


def predict_ours(model, config, geometry, latents, text, layout, attention="reference"):
    """Our prediction as diffusers shapes it, `[batch, channels, frames, height, width]`."""
    denoiser, params = make_ours(model, config, layout, attention)
    tokens = padded(latents, denoiser, geometry)
    batch = len(text)
    text = text.numpy()[np.arange(denoiser.padded_batch(batch)) % batch]

    @jax.jit
    def forward(params, tokens, text):
        context = denoiser.text_context(params, text)
        velocity = denoiser.predict(params, tokens, jnp.float32(TIMESTEP), context, geometry)
        return unpatchify(velocity, geometry)

    with jax.set_mesh(denoiser.setting.concrete_mesh):
        velocity = np.asarray(forward(params, tokens, text))[:batch]
    return np.moveaxis(velocity, -1, 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_device_equals_diffusers(name):
    config, geometry = CONFIGS[name]
    model = make_original(config)
    latents, text = make_inputs(config, geometry)
    ours = predict_ours(model, config, geometry, latents, text, parse_layout("single"))
    assert relative_error(ours, predict_original(model, latents, text)) <= PARITY


LAYOUTS = [
    ("dp2", "ulysses", "sharded"),
    ("tp8", "ulysses", "sharded"),
    ("sp8", "ulysses", "sharded"),
    ("sp8", "allgather", "replicated"),
    ("dp2-sp2-tp2", "ulysses", "sharded"),
    ("dp2-sp2-tp2", "allgather", "replicated"),
    ("dp8", "ulysses", "sharded"),
]


@pytest.mark.parametrize(("text_form", "sequence_parallel", "weights"), LAYOUTS)
@pytest.mark.parametrize("name", ["eight heads", "odd sizes"])
def test_layout_equals_diffusers(name, text_form, sequence_parallel, weights, devices):
    """Odd sizes: 5 heads and 28 tokens pad on every split of 8.

    Red when padding tokens are attended (they hold 100), when RoPE tables are not cut with the
    tokens, or when RMSNorm divides by the padded width. Tried: `num_keys` not passed on, 0.17 (odd
    sizes, tp8); the first shard's RoPE tables in every shard, 0.13; groups of heads in reverse
    after the all-to-all, 0.94 and 2.0 (sp8).
    """
    config, geometry = CONFIGS[name]
    model = make_original(config)
    latents, text = make_inputs(config, geometry)
    layout = parse_layout(text_form, sequence_parallel=sequence_parallel, weights=weights)
    ours = predict_ours(model, config, geometry, latents, text, layout)
    assert relative_error(ours, predict_original(model, latents, text)) <= LAYOUT


def test_without_guidance_batch_of_one_on_dp2(devices):
    config, geometry = CONFIGS["eight heads"]
    model = make_original(config)
    latents, text = make_inputs(config, geometry, batch=1)
    ours = predict_ours(model, config, geometry, latents, text, parse_layout("dp2-tp4"))
    assert relative_error(ours, predict_original(model, latents, text)) <= LAYOUT


@pytest.mark.parametrize("attention", ["chunked", "dot_product", "splash"])
def test_every_attention_gives_the_same_prediction(attention, devices):
    config, geometry = CONFIGS["odd sizes"]
    model = make_original(config)
    latents, text = make_inputs(config, geometry)
    ours = predict_ours(model, config, geometry, latents, text, parse_layout("sp2-tp2"), attention)
    assert relative_error(ours, predict_original(model, latents, text)) <= LAYOUT


def test_patchify_is_undone_by_unpatchify():
    geometry = Geometry(width=48, height=32, num_frames=5)
    shape = (1, 3, geometry.latent_frames, geometry.latent_height, geometry.latent_width)
    latents = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    tokens = patchify(latents, (1, 2, 2))
    assert tokens.shape == (1, geometry.num_tokens, 12)
    np.testing.assert_array_equal(
        np.moveaxis(np.asarray(unpatchify(jnp.asarray(tokens), geometry)), -1, 1), latents
    )
