"""Attention over keys of int8, 720p, compiled by the TPU compiler for a v6e that is not here."""

from tests.planner.test_kernels import INT8, INT8_COUNT
from wan_tpu.planner.kernel_cycles import count_cycles


def test_the_schedule_at_720p():
    """Bundle for bundle: all of a video's keys fit in the chip's memory as one block, twice.

    Red when the kernel, or how its schedule is read, changes.
    """
    assert count_cycles(INT8.smallest_alike()).of(INT8).parts == INT8_COUNT
