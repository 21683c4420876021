"""Ring attention through the TPU compiler: transfers go on while the kernel works."""

import re

import jax
import jax.numpy as jnp
import pytest

from tests.aot.test_attention_compile import make, memory
from wan_tpu.attention.sequence_parallel import sharded_attend
from wan_tpu.sharding.mesh import named
from wan_tpu.stage import Stage, abstract

NUM_TOKENS, NUM_KEYS, HEADS, HEAD_DIM = 75_776, 75_600, 40, 128


@pytest.fixture(scope="module")
def compiled():
    """One layer of 14B at 720p; the last of eight shards ends in padding."""
    layout, mesh = make("v6e:2x4", "sp8", "ring")
    split = named(mesh, None, "dp", "sp", "tp")
    array = abstract((1, 1, NUM_TOKENS, HEADS * HEAD_DIM), jnp.bfloat16, split)

    def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return sharded_attend(
            query,
            key,
            value,
            head_dim=HEAD_DIM,
            mesh=mesh,
            layout=layout,
            implementation="flash",
            num_keys=NUM_KEYS,
        )

    return Stage(name="attention", function=attention, arguments=(array,) * 3, mesh=mesh).compile()


def test_transfers_start_before_the_kernel_and_end_after_it(compiled):
    """In the body of the loop over turns; the conditional holds the kernels, with padding and
    without. Red when a block is sent on only after it was attended to. (Blocks so small that they
    fit into VMEM, 5 heads of 8,192 tokens, the compiler does send only then.)
    """
    marks = re.findall(r" (?:collective-permute-(start|done)|(conditional))\(", compiled.as_text())
    order = [start_or_done or conditional for start_or_done, conditional in marks]
    assert order == ["start", "start", "conditional", "done", "done", "conditional"]


def test_memory_falls_with_sp(compiled):
    """All is in proportion to a shard: 15 times its keys, most of it the merge's float32.

    Red when keys and values of all shards, 16 times more, are held at once.
    """
    one_shard = NUM_TOKENS // 8 * HEADS * HEAD_DIM * 2
    assert memory(compiled).temp_size_in_bytes < 20 * one_shard
