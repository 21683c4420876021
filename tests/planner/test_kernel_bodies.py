"""Programs that are read have empty attention kernels, and are otherwise what runs."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from wan_tpu.attention.api import attend_chunks
from wan_tpu.attention.int8_keys import QuantizedKeys
from wan_tpu.planner.compile import compile_stage
from wan_tpu.planner.program import read_program
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import named
from wan_tpu.stage import Stage

TOKENS, HEADS, HEAD_DIM = 1024, 2, 128
CHANNELS = HEADS * HEAD_DIM

_OF_KERNELS = re.compile(r'"(?:body|used_scoped_memory_configs)":(?:"[^"]*"|\[[^\]]*\])')
_SOURCES = re.compile(r" stack_frame_id=\d+")


def attention_between_products(mesh, implementation):
    """What is before and after a kernel may take the VMEM that it leaves."""
    device = mesh.devices.flat[0]
    attend = functools.partial(
        attend_chunks, head_dim=HEAD_DIM, implementation=implementation, num_keys=TOKENS - 24,
        device=device,
    )  # fmt: skip

    def layer(hidden, weight):
        query, key, value = (jnp.tanh(hidden @ weight) + i for i in range(3))
        if implementation == "flash-int8":
            key = QuantizedKeys(jnp.round(key * 60).astype(jnp.int8), jnp.ones((1, HEADS)) / 60)
        return jnp.tanh(attend(query, key, value) @ weight)

    whole = PartitionSpec()
    function = jax.shard_map(layer, mesh=mesh, in_specs=whole, out_specs=whole, check_vma=False)
    shapes = ((1, 1, TOKENS, CHANNELS), (CHANNELS, CHANNELS))
    arguments = tuple(
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=named(mesh)) for shape in shapes
    )
    return Stage(name="layer", function=function, arguments=arguments, mesh=mesh)


def instructions(text):
    """What runs, without the kernels' bodies and the names of source files."""
    lines = (line for line in text.splitlines() if line.startswith(("  %", "  ROOT", "ENTRY")))
    return [_SOURCES.sub("", _OF_KERNELS.sub("", line)) for line in lines]


@pytest.mark.parametrize("implementation", ["flash", "flash-int8", "splash"])
def test_an_empty_kernel_changes_nothing_else(tpu_mesh, implementation):
    """Red when a kernel loses its VMEM or its layouts, and when what runs loses its kernels."""
    stage = attention_between_products(tpu_mesh("v6e-1", Layout()), implementation)
    whole = stage.compile()
    facts, read = compile_stage(stage)
    text, memory = whole.as_text(), whole.memory_analysis()
    assert text is not None
    assert memory is not None
    assert instructions(read) == instructions(text)
    assert read_program(read) == read_program(text)
    assert facts.peak_bytes == memory.peak_memory_in_bytes
    operations = read_program(read).operations
    (kernel,) = [o.attention for o in operations if o.attention is not None]
    assert kernel.is_int8 == (implementation == "flash-int8")
    bodies = [max(map(len, re.findall(r'"body":"([^"]*)"', each))) for each in (read, text)]
    assert bodies[0] < 2000 < bodies[1], "the kernel that is counted apart is empty"
    assert stage.compile().as_text() == text, "what runs has its kernels still"
