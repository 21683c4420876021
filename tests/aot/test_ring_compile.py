"""Ring attention through the TPU compiler: transfers go on while the kernel works."""

import re

import jax
import jax.numpy as jnp
import pytest

from tests.aot.test_attention_compile import make, memory
from wan_tpu.attention.sequence_parallel import sharded_attend
from wan_tpu.sharding.mesh import named
from wan_tpu.stage import Stage, abstract


def compile_ring(num_tokens, num_keys):
    layout, mesh = make("v6e:2x4", "sp8", "ring")
    array = abstract((1, num_tokens, 5, 128), jnp.bfloat16, named(mesh, "dp", "sp", "tp"))

    def attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        return sharded_attend(
            query, key, value, mesh=mesh, layout=layout, implementation="auto", num_keys=num_keys
        )

    return Stage(name="attention", function=attention, arguments=(array,) * 3, mesh=mesh).compile()


@pytest.fixture(scope="module")
def compiled():
    """Five heads over eight shards, 8,192 tokens each; the last shard ends in padding."""
    return compile_ring(65_536, 65_500)


def test_transfers_start_before_the_kernel_and_end_after_it(compiled):
    """In the body of the loop over turns; the conditional holds the kernels, with padding and
    without. Red when a block is sent on only after it was attended to."""
    marks = re.findall(r" (?:collective-permute-(start|done)|(conditional))\(", compiled.as_text())
    order = [start_or_done or conditional for start_or_done, conditional in marks]
    assert order == ["start", "start", "conditional", "done", "done", "conditional"]


def test_memory_falls_with_sp(compiled):
    """Temporaries of 4.4 times a shard's keys. Red when keys of all shards are held at once."""
    one_shard = 65_536 // 8 * 5 * 128 * 2
    assert memory(compiled).temp_size_in_bytes < 6 * one_shard
