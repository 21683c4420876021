"""The VAE's decode programs compiled for a v6e-8 by the real TPU compiler: what a chip needs."""

import re
from typing import Any

import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.vae.config import VaeConfig
from wan_tpu.vae.streaming import abstract_params, make_decode_stages
from wan_tpu.vae.weights import DECODER

GIB = 2**30
PEAK_LIMIT_GIB = 3.0

WAN = VaeConfig(latents_mean=(0.0,) * 16, latents_std=(1.0,) * 16)
SMALL = VaeConfig(
    base_dim=32,
    decoder_base_dim=32,
    dim_mult=(1, 2, 2),
    num_res_blocks=2,
    temperal_downsample=(False, True),
    latents_mean=(0.0,) * 16,
    latents_std=(1.0,) * 16,
)


def compile_decode(config, latent_height, latent_width, layout="dp2-sp2-tp2") -> list[Any]:
    """Both programs in bfloat16 for a v6e-8."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v6e:2x4")
    mesh = make_mesh(parse_layout(layout), topology.devices)
    params = abstract_params(config, jnp.bfloat16, mesh=mesh, parts=(DECODER,))
    stages = make_decode_stages(config, mesh, latent_height, latent_width, jnp.bfloat16, params)
    return [stage.compile() for stage in stages]


def collectives(program):
    """Names of the exchanges between devices, with the shape of each one's result."""
    kinds = r"all-\w+|collective-permute|reduce-scatter"
    pattern = rf"= \(?(\w+\[[\d,]*\])\S* .*?\b({kinds})(?:-start)?\("
    return [(kind, shape) for shape, kind in re.findall(pattern, program)]


def test_small_decoder_exchanges_border_columns_only():
    """Red when a partitioner puts a picture together: that is a gather the size of the picture."""
    first, following = compile_decode(SMALL, 16, 32)
    for compiled, frames in ((first, 1), (following, 2)):
        memory, found = compiled.memory_analysis(), collectives(compiled.as_text())
        kinds = {kind for kind, _ in found}
        assert kinds == {"collective-permute", "all-gather"}, found
        # Attention's keys and values (one latent frame), and the finished bytes.
        gathered = [shape for kind, shape in found if kind == "all-gather"]
        assert len(gathered) == 2, found
        assert any(shape.startswith(f"u8[{frames},") for shape in gathered), found
        assert memory.peak_memory_in_bytes < 64 * 2**20
    cache = following.memory_analysis().alias_size_in_bytes
    assert cache > 2**20, "the cache is updated in place"


def test_equal_blocks_are_compiled_once():
    """Red when a block is unrolled: the compiler takes seconds for each convolution it sees."""
    (_, following) = compile_decode(SMALL, 16, 32)
    written = len(re.findall(r"\bconvolution\(", following.as_text()))
    in_model = 33  # 1 before, 4 + 2 in the middle, 3 levels of 6, 4 of resampling, ...
    assert written < in_model, written


@pytest.mark.slow
def test_720p_fits_in_three_gib():
    for compiled in compile_decode(WAN, 90, 160):
        peak = compiled.memory_analysis().peak_memory_in_bytes / GIB
        assert peak <= PEAK_LIMIT_GIB, f"{peak:.2f} GiB"
