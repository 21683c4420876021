"""Attention over keys of int8, compiled by the TPU compiler for a v6e that is not here."""

import pytest

from tests.planner.test_kernels import INT8, INT8_COUNTED, SMALL_INT8
from wan_tpu.planner.kernel_cycles import count_cycles


@pytest.mark.parametrize(
    "shape", [SMALL_INT8, pytest.param(INT8, marks=pytest.mark.slow)], ids=["480p", "720p"]
)
def test_the_schedule(shape):
    """Bundle for bundle: all of a video's keys fit in the chip's memory as one block, twice.

    Red when the kernel, or how its schedule is read, changes.
    """
    assert count_cycles(shape.smallest_alike()).of(shape).parts == INT8_COUNTED[shape]
