"""A step in int8 through the TPU compiler: what the matrix units multiply, and what is stored."""

import jax.numpy as jnp
import pytest

from wan_tpu.checkpoints.models import describe_model
from wan_tpu.pipeline.check import check_request
from wan_tpu.pipeline.model import make_video_model
from wan_tpu.planner.compile import slice_devices
from wan_tpu.planner.hardware import find_slice
from wan_tpu.planner.hlo import leaves, parse_program
from wan_tpu.request import VideoRequest
from wan_tpu.schedulers.api import make_schedule
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import make_mesh

pytestmark = pytest.mark.slow
"""A whole step takes a quarter of a minute; one product is in `tests/planner/test_program.py`."""

DIM, WIDTH = 1536, 8960
"""Of the 1.3B's residual stream and feed-forward: both together only its feed-forward weights."""

DEVICES = 4


@pytest.fixture(scope="module")
def program():
    """The 1.3B's step at a small size; layers are a loop, so their number does not matter."""
    description = describe_model("wan2.1-t2v-1.3b")
    mesh = make_mesh(Layout(dp=2, sp=2), slice_devices(find_slice("v6e-4")))
    model = make_video_model(
        description, mesh, Layout(dp=2, sp=2), dtype=jnp.dtype("bfloat16"), quantize="int8"
    )
    request = VideoRequest(prompt="a fox", width=256, height=256, num_frames=17)
    _, geometry = check_request(description, request)
    schedule = make_schedule(
        "unipc",
        num_inference_steps=4,
        flow_shift=5.0,
        config=description.configs["scheduler"],
    )
    text = model.step_stage(geometry, schedule, batch=2).compile().as_text()
    assert text is not None
    return parse_program(text)


def test_the_matrix_units_multiply_int8(program):
    """Eight products a block, queries to feed-forward, each of int8 on both sides and summed in 32
    bits: red when one is made of numbers that were scaled back before."""
    operands = [
        {array.dtype for kind in computation.operand_kinds(i)[:2] for array in leaves(kind)}
        for computation in program.computations.values()
        for i in computation.instructions.values()
        if i.opcode in ("dot", "convolution") and i.array.dtype == "s32"
    ]
    assert operands == [{"s8"}] * 8


def test_no_weight_is_stored_as_floats(program):
    """Red when the compiler makes a copy of the stack, or of a layer, in bfloat16 or float32."""
    sides = {(WIDTH // ways, DIM) for ways in (1, DEVICES)}
    sides |= {(WIDTH, DIM // ways) for ways in (1, DEVICES)}
    found: dict[str, int] = {}
    for computation in program.computations.values():
        for instruction in computation.instructions.values():
            for array in leaves(instruction.kind):
                if any(set(pair) <= set(array.dims) for pair in sides):
                    found[array.dtype] = found.get(array.dtype, 0) + 1
    assert found.keys() == {"s8"}, found
