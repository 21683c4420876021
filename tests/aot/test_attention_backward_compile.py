"""Attention's backward, and that of norm and rotation, at 14B's sizes through the TPU compiler.

Compiling proves that the tiles fit the chip's VMEM. One head, batch and layer stand for all: more
are more turns of the same loop.
"""

import re

import jax
import jax.numpy as jnp
import pytest

from tests.aot.test_attention_compile import MIB, make, memory
from wan_tpu.attention.flash import flash_attention
from wan_tpu.attention.names import ATTENTION_LOGSUMEXP, ATTENTION_OUT
from wan_tpu.sharding.mesh import named
from wan_tpu.stage import Stage, abstract
from wan_tpu.transformer.norm_rotate import norm_rotate

HEAD_DIM, HEADS = 128, 40


def compile_attention(topology_name, query, key, num_keys, dtype=jnp.bfloat16, heads=1):
    """One head's attention and its gradient, with what the latter needs kept; chunks, chunk."""
    _, mesh = make(topology_name, "single", "ulysses")

    def attention(*arrays: jax.Array) -> jax.Array:
        return flash_attention(
            *arrays,
            head_dim=HEAD_DIM,
            num_keys=num_keys,
            interpret=False,
            device_kind=mesh.devices.flat[0].device_kind,
        )

    policy = jax.checkpoint_policies.save_only_these_names(ATTENTION_OUT, ATTENTION_LOGSUMEXP)
    kept = jax.checkpoint(attention, policy=policy)

    def per_device(query: jax.Array, key: jax.Array, value: jax.Array, d_out: jax.Array):
        return jax.vjp(kept, query, key, value)[1](d_out)

    gradients = jax.shard_map(
        per_device, mesh=mesh, in_specs=jax.P(), out_specs=jax.P(), check_vma=False
    )
    query, key = (
        abstract((chunks, 1, chunk, heads * HEAD_DIM), dtype, named(mesh))
        for chunks, chunk in (query, key)
    )
    arguments = query, key, key, query
    return Stage(name="attention", function=gradients, arguments=arguments, mesh=mesh).compile()


def kernels(compiled):
    """Names of the kernels of a program, one for each time it is there."""
    names = "|".join((BACKWARD, FORWARD, *NORM_BACKWARD))
    calls = [line for line in compiled.as_text().splitlines() if "tpu_custom_call" in line]
    return sorted(re.findall(names, line)[0] for line in calls)


BACKWARD, FORWARD = "flash_attention_backward_head128", "flash_attention_head128"
NORM_BACKWARD = ["norm_rotate_gradients", "norm_rotate_product_sums"]


def test_each_kernel_runs_once():
    """Red when remat's policy does not keep result and logsumexp: the forward is there twice.

    Sums of d_query in memory take one head's room, whatever their number: 1 MiB for 2,048 tokens,
    and the rest 0.2. Red when each of the eight heads has room of its own.
    """
    compiled = compile_attention("v6e:2x4", (2, 1024), (2, 1024), 2_000, heads=8)
    assert kernels(compiled) == [BACKWARD, FORWARD]
    assert memory(compiled).temp_size_in_bytes < 2 * MIB


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology_name", "query", "key", "num_keys", "dtype"),
    [
        ("v6e:2x4", (8, 4096), (8, 4096), 32_760, jnp.bfloat16),  # 480p, 81 frames, sp8
        ("v6e:2x4", (8, 9472), (8, 9472), 75_600, jnp.bfloat16),  # 720p, 81 frames, sp8
        ("v6e:2x4", (1, 9472), (1, 512), 512, jnp.bfloat16),  # its text
        ("v6e:2x4", (1, 2048), (1, 2048), 2_048, jnp.float32),
        ("v5p:2x2x1", (8, 9472), (8, 9472), 75_600, jnp.bfloat16),
        ("tpu7x:2x2x1", (8, 9472), (8, 9472), 75_600, jnp.bfloat16),
    ],
)
def test_other_sizes_and_chips(topology_name, query, key, num_keys, dtype):
    compiled = compile_attention(topology_name, query, key, num_keys, dtype)
    assert kernels(compiled) == [BACKWARD, FORWARD]


@pytest.mark.parametrize("tokens", [4096, pytest.param(9472, marks=pytest.mark.slow)])
def test_norm_and_rotation(tokens):
    """480p and 720p of 81 frames in eight shards; forward and its two backward kernels."""
    layout, mesh = make("v6e:2x4", "sp8", "ulysses")
    channels = HEADS * HEAD_DIM

    def gradients(x: jax.Array, weight: jax.Array, *rest: jax.Array):
        *tables, d_out = rest
        function = lambda x, weight: norm_rotate(  # noqa: E731
            x, weight, *tables, dim=channels, eps=1e-6, mesh=mesh, layout=layout
        )
        return jax.vjp(function, x, weight)[1](d_out)

    split = named(mesh, "dp", "sp", "tp")
    grouped = named(mesh, None, "dp", "sp", "tp")
    table = abstract((8 * tokens, HEAD_DIM), jnp.float32, named(mesh, "sp"))
    arguments = (
        abstract((1, 8 * tokens, channels), jnp.bfloat16, split),
        abstract((channels,), jnp.bfloat16, named(mesh, "tp")),
        table,
        table,
        abstract((8, 1, 8 * tokens, channels // 8), jnp.bfloat16, grouped),
    )
    compiled = Stage(name="norm", function=gradients, arguments=arguments, mesh=mesh).compile()
    assert kernels(compiled) == NORM_BACKWARD  # the forward's result is not asked for
