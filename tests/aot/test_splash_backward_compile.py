"""Gradients by splash and round a ring, of the real models, compiled for slices that are not here.

Compiling proves that the tiles fit the chip's VMEM.
"""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from tests.aot.test_attention_compile import kernels, make, memory
from wan_tpu.attention.names import ATTENTION_LOGSUMEXP, ATTENTION_OUT
from wan_tpu.attention.sequence_parallel import sharded_attend
from wan_tpu.sharding.mesh import named
from wan_tpu.stage import Stage, abstract

HEAD_DIM = 128
MIB = 2**20


def compile_gradient(
    topology_name,
    text,
    way,
    name,
    *,
    tokens,
    heads,
    head_dim=HEAD_DIM,
    dtype=jnp.bfloat16,
    real=None,
):
    """Self-attention and its gradients, with what the forward gives kept by name."""
    layout, mesh = make(topology_name, text, way)
    groups = layout.head_groups
    shape = (groups, layout.dp, tokens, heads // groups * HEAD_DIM)
    array = abstract(shape, dtype, named(mesh, None, "dp", "sp", "tp"))
    policy = jax.checkpoint_policies.save_only_these_names(ATTENTION_OUT, ATTENTION_LOGSUMEXP)

    @functools.partial(jax.checkpoint, policy=policy)
    def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return sharded_attend(
            query, key, value,
            head_dim=HEAD_DIM, mesh=mesh, layout=layout, implementation=name, num_keys=real,
        )  # fmt: skip

    def gradients(
        query: jax.Array, key: jax.Array, value: jax.Array, d_out: jax.Array
    ) -> tuple[jax.Array, ...]:
        _, transposed = jax.vjp(attention, query, key, value)
        return transposed(d_out)

    return Stage(name="gradient", function=gradients, arguments=(array,) * 4, mesh=mesh).compile()


def test_splash_on_v5e():
    """1.3B at 480p, three heads a chip: the forward's kernel, then the backward's for the keys of
    whole parts and for the last one.

    Red when the forward runs again: four kernels.
    """
    compiled = compile_gradient(
        "v5e:2x4", "dp2-tp4", "ulysses", "splash", tokens=32_768, heads=12, real=32_760
    )
    assert kernels(compiled) == 3


@pytest.mark.slow
def test_memory_of_splash_on_v6e_8():
    """14B at 480p, five heads a chip: 685 MiB, of them 480 the shares of twelve of sixteen blocks.

    Red when those of all blocks are held, 640 MiB.
    """
    compiled = compile_gradient(
        "v6e:2x4", "sp8", "ulysses", "splash", tokens=32_768, heads=40, real=32_760
    )
    assert memory(compiled).temp_size_in_bytes < 750 * MIB


@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology_name", "text", "heads", "tokens", "dtype"),
    [
        ("v6e:2x4", "sp8", 40, 75_600, jnp.bfloat16),
        ("v6e:2x4", "dp8", 12, 32_760, jnp.bfloat16),
        ("v6e:2x4", "sp8", 40, 32_760, jnp.float32),
        ("v5e:2x4", "sp8", 40, 32_760, jnp.bfloat16),
        ("v5e:2x4", "dp2-tp4", 12, 32_760, jnp.float32),
        ("v5p:2x2x1", "sp4", 40, 75_600, jnp.bfloat16),
        ("v5p:2x2x1", "sp4", 12, 32_760, jnp.bfloat16),
        ("tpu7x:2x2x1", "sp8", 40, 32_760, jnp.bfloat16),
    ],
)
def test_splash_fits_every_chip(topology_name, text, heads, tokens, dtype):
    compiled = compile_gradient(
        topology_name, text, "ulysses", "splash", tokens=tokens, heads=heads, dtype=dtype
    )
    assert kernels(compiled) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flash", "splash"])
def test_a_ring_sends_while_it_works(name):
    """14B at 480p: keys, values and the sums of their gradients set out before the kernel and
    arrive after it; the sums once more, home, with nothing to hide behind.

    Red when a sum is sent on in the turn that it was made in. Memory is a shard's, measured
    32 (flash) and 41 (splash) times its keys: red when keys of all shards are held, 14 times more.
    """
    compiled = compile_gradient(
        "v6e:2x4", "sp8", "ring", name, tokens=32_768, heads=40, real=32_700
    )
    program = str(compiled.as_text())
    marks = re.findall(r" (?:collective-permute-(start|done)|(conditional))\(", program)
    order = [start_or_done or conditional for start_or_done, conditional in marks]
    turn = ["start"] * 4 + ["conditional"] + ["done"] * 4
    assert any(order[i : i + len(turn)] == turn for i in range(len(order))), order
    one_shard = 32_768 // 8 * 40 * HEAD_DIM * 2
    assert memory(compiled).temp_size_in_bytes < 45 * one_shard
