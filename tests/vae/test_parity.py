"""Our autoencoder against diffusers' own: decode and encode, whole and streamed, split and not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan

from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.vae.config import VaeConfig
from wan_tpu.vae.streaming import StreamingVae, to_uint8
from wan_tpu.vae.weights import vae_state_from_tensors

RANGE_TOLERANCE = 1e-4
"""Of the decoded range [-1, 1] and of the encoder's largest value, float32."""

CONFIGS = {
    "wan's shape": {"base_dim": 8, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2},
    "one block, narrow top": {"base_dim": 16, "dim_mult": [1, 2, 3, 2], "num_res_blocks": 1},
    "three levels": {
        "base_dim": 8,
        "dim_mult": [1, 2, 4],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
    },
    "time halved once": {
        "base_dim": 8,
        "dim_mult": [1, 1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, False],
    },
}


def make_original(**config):
    """diffusers' model with weights that make a lively picture, and its configuration."""
    torch.manual_seed(0)
    z_dim = 4
    model = AutoencoderKLWan(
        z_dim=z_dim,
        latents_mean=[0.1 * n - 0.2 for n in range(z_dim)],
        latents_std=[1.0 + 0.3 * n for n in range(z_dim)],
        **config,
    ).eval()
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            parameter.data.normal_(1.0, 0.3)
        elif name.endswith("bias"):
            parameter.data.normal_(0.0, 0.1)
    return model, VaeConfig.from_json(model.config)


def load(model, config, layout="single"):
    layout = parse_layout(layout)
    mesh = make_mesh(layout, jax.devices()[: layout.num_devices])
    tensors = {name: t.numpy() for name, t in model.state_dict().items()}
    params = vae_state_from_tensors(config, tensors, np.float32)
    vae = StreamingVae(config=config, mesh=mesh, dtype=jnp.float32)
    return vae, params


def make_latents(config, frames, height, width):
    rng = np.random.default_rng(1)
    shape = (1, frames, height, width, config.z_dim)
    return rng.normal(size=shape).astype(np.float32)


def decode_original(model, config, latents):
    """`[frames, height, width, 3]` in [-1, 1], from normalised latents as the pipeline does it."""
    scaled = latents * np.array(config.latents_std) + np.array(config.latents_mean)
    with torch.no_grad():
        z = torch.tensor(np.moveaxis(scaled, -1, 1), dtype=torch.float32)
        video = model.decode(z, return_dict=False)[0][0].numpy()
    return np.moveaxis(video, 0, -1)


def stream(vae, params, latents):
    """Frames as the two decode programs give them, uint8."""
    with jax.set_mesh(vae.mesh):
        first, following = jax.jit(vae.decode_first), jax.jit(vae.decode_next)
        frames, cache = first(params, latents[:, :1])
        chunks = [np.asarray(frames)]
        for index in range(1, latents.shape[1]):
            frames, cache = following(params, latents[:, index : index + 1], cache)
            chunks.append(np.asarray(frames))
    return np.concatenate(chunks)


@pytest.mark.parametrize("name", CONFIGS)
def test_whole_decode_equals_diffusers(name, devices):
    model, config = make_original(**CONFIGS[name])
    vae, params = load(model, config)
    latents = make_latents(config, 4, 4, 6)
    expected = decode_original(model, config, latents)
    with jax.set_mesh(vae.mesh):
        ours = np.asarray(jax.jit(vae.decode)(params, latents))[0]
    assert expected.std() > 0.05, "a flat picture would prove nothing"
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() <= RANGE_TOLERANCE * 2


@pytest.mark.parametrize("name", ["wan's shape", "time halved once"])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_streamed_decode_equals_diffusers(name, frames, devices):
    """Red when the second chunk's temporal cache starts from the first frame instead of zeros."""
    model, config = make_original(**CONFIGS[name])
    vae, params = load(model, config)
    latents = make_latents(config, frames, 4, 6)
    expected = decode_original(model, config, latents)
    ours = stream(vae, params, latents)
    expected_bytes = ((expected / 2 + 0.5).clip(0, 1) * 255).round()
    assert ours.dtype == np.uint8
    # Where the float lies within 1e-4 of a half, rounding may go either way.
    assert np.abs(ours - expected_bytes).max() <= 1
    assert (ours != expected_bytes).mean() <= 2e-3


@pytest.mark.parametrize(
    ("layout", "height", "width"),
    [("tp8", 4, 8), ("dp2-sp2-tp2", 6, 6), ("sp8", 5, 7), ("dp2-sp4", 8, 12)],
)
def test_split_decode_equals_one_device(layout, height, width, devices):
    """Widths and heights that divide by all, some and none of the axes."""
    model, config = make_original(**CONFIGS["wan's shape"])
    latents = make_latents(config, 3, height, width)
    alone = stream(*load(model, config), latents)
    split = stream(*load(model, config, layout), latents)
    assert np.abs(split.astype(int) - alone.astype(int)).max() <= 1
    assert (split != alone).mean() <= 2e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_encode_equals_diffusers(name, devices):
    model, config = make_original(**CONFIGS[name])
    vae, params = load(model, config)
    factor = config.spatial_compression
    rng = np.random.default_rng(2)
    video = rng.uniform(-1, 1, (1, 9, 4 * factor, 3 * factor, 3)).astype(np.float32)
    with torch.no_grad():
        encoded: Any = model.encode(torch.tensor(np.moveaxis(video, -1, 1)))
    with jax.set_mesh(vae.mesh):
        mean, log_variance = jax.jit(vae.encode)(params, video)
    posterior = encoded.latent_dist
    for ours, expected in ((mean, posterior.mean), (log_variance, posterior.logvar)):
        expected = np.moveaxis(expected.numpy(), 1, -1)
        assert np.abs(np.asarray(ours) - expected).max() <= RANGE_TOLERANCE * np.abs(expected).max()


def test_split_encode_equals_one_device(devices):
    model, config = make_original(**CONFIGS["one block, narrow top"])
    rng = np.random.default_rng(2)
    video = rng.uniform(-1, 1, (1, 5, 64, 64, 3)).astype(np.float32)
    results = []
    for layout in ("single", "dp2-tp4"):
        vae, params = load(model, config, layout)
        with jax.set_mesh(vae.mesh):
            results.append(np.asarray(jax.jit(vae.encode)(params, video)[0]))
    assert np.abs(results[0] - results[1]).max() <= RANGE_TOLERANCE * np.abs(results[0]).max()


def test_bytes_by_diffusers_rule():
    values = jnp.asarray([-2.0, -1.0, 0.0, 1 / 255, 1.0, 3.0])
    np.testing.assert_array_equal(to_uint8(values), [0, 0, 128, 128, 255, 255])
