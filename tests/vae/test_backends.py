"""Decoders behind one interface, and what their loading refuses."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wan_tpu.checkpoints.models import open_model
from wan_tpu.errors import CheckpointError, MissingPackageError, UnknownNameError
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.vae.backends import load_vae
from wan_tpu.vae.config import VaeConfig


def load_wan_tiny(name, devices):
    model = open_model("wan-tiny")
    mesh = make_mesh(parse_layout("dp2"), devices[:2])
    config = VaeConfig.from_json(model.configs["vae"])
    folder = model.component_folder("vae")
    return load_vae(name, config, folder, mesh=mesh, dtype=jnp.float32), config


def test_two_programs_decode_any_number_of_frames(devices):
    vae, config = load_wan_tiny("flax", devices)
    stages = vae.stages(4, 4)
    assert len(stages) == 2
    programs = [stage.compile() for stage in stages]
    for frames in (1, 3):
        latents = jax.random.normal(jax.random.key(0), (1, frames, 4, 4, config.z_dim))
        chunks = list(vae.frames(latents, programs))
        assert [c.shape for c in chunks] == [(1, 32, 32, 3)] + [(4, 32, 32, 3)] * (frames - 1)
        assert all(c.dtype == np.uint8 for c in chunks)


def test_unknown_name(devices):
    with pytest.raises(UnknownNameError, match="flax, maxdiffusion"):
        load_wan_tiny("torch", devices)


@pytest.mark.skipif(importlib.util.find_spec("maxdiffusion") is not None, reason="installed here")
def test_maxdiffusion_missing_says_how_to_get_it(devices):
    with pytest.raises(MissingPackageError, match="AI-Hypercomputer/maxdiffusion"):
        load_wan_tiny("maxdiffusion", devices)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_residual": True}, "is_residual"),
        ({"in_channels": 12}, "in_channels"),
        ({"latents_mean": [0.0]}, "latents_mean"),
        ({"temperal_downsample": [True]}, "temperal_downsample"),
    ],
)
def test_other_autoencoders_are_refused(change, message):
    config = dict(open_model("wan-tiny").configs["vae"])
    with pytest.raises(CheckpointError, match=message):
        VaeConfig.from_json(config | change)
