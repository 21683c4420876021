"""A clip through the trained autoencoder of wan-tiny-ti2v, Wan 2.2's kind, and back."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerances import psnr
from wan_tpu.checkpoints.component import open_component
from wan_tpu.checkpoints.known import WAN_TINY_TI2V
from wan_tpu.demo import data
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.vae.backends import load_vae
from wan_tpu.vae.config import VaeConfig
from wan_tpu.vae.weights import DECODER, ENCODER

FOLDER = pathlib.Path(data.__file__).parent / WAN_TINY_TI2V / "vae"


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    """`[9, 128, 128, 3]`, uint8: a shape half-way across its background."""
    scene = data.Scene(color="red", shape="square", direction="right", background="navy")
    frames = data.make_clip(scene, np.random.default_rng(0), data.MIDDLE_WORLD)[:9]
    return np.round(frames * 255).astype(np.uint8)


def load(dtype):
    mesh = make_mesh(parse_layout("single"), jax.devices()[:1])
    config = VaeConfig.from_json(json.loads((FOLDER / "config.json").read_text()))
    source = open_component("vae", FOLDER)
    return config, load_vae(
        "flax", config, source, mesh=mesh, dtype=dtype, parts=(DECODER, ENCODER)
    )


def decode(vae, latents) -> np.ndarray:
    _, frames, height, width, _ = latents.shape
    programs = [stage.compile() for stage in vae.stages(height, width, frames)]
    return np.concatenate([np.asarray(part) for part in vae.frames(latents, programs)])


def test_a_clip_comes_back(clip):
    """Latents as the transformer takes them are those of a unit normal; bfloat16 loses little.

    Red with another model's mean and standard deviation, with two pixels of a patch exchanged, and
    with sums of the shortcuts' values rounded one by one.
    """
    config, vae = load(jnp.float32)
    video = clip.astype(np.float32)[None] / 127.5 - 1
    programs = [stage.compile() for stage in vae.encode_stages(128, 128, len(clip))]
    latents = config.normalise(vae.moments(video, programs).mean)
    assert latents.shape == (1, 3, 8, 8, 48)
    assert abs(latents.mean()) < 0.2  # measured: -0.06
    assert 0.7 < latents.std() < 1.4  # measured: 1.03
    exact = decode(vae, latents)
    assert psnr(exact, clip) > 32  # measured: 36.2 for 17 frames, as diffusers' own
    assert psnr(decode(load(jnp.bfloat16)[1], latents), exact) > 50  # measured: 62.9
