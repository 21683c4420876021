"""Walks round a block of chips, and that other devices keep their order."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.sharding.neighbours import closed_walk

SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=4).filter(lambda s: math.prod(s) <= 256)


def steps(walk):
    """How far each point is from the one before; the way back to the first comes first."""
    return [
        sum(abs(a - b) for a, b in zip(one, other, strict=True))
        for one, other in zip(walk, [walk[-1], *walk[:-1]], strict=True)
    ]


@given(SIZES)
def test_a_walk_takes_every_point_once_in_single_steps(sizes):
    walk = closed_walk(sizes)
    assert sorted(walk) == list(itertools.product(*map(range, sizes)))
    assert all(step == 1 for step in steps(walk)[1:])


@given(SIZES)
def test_a_walk_is_closed_where_one_can_be(sizes):
    """Red for a plain walk to and fro, which ends a row's or a column's length from its start."""
    walk = closed_walk(sizes)
    even = math.prod(sizes) % 2 == 0
    a_line = sum(size > 1 for size in sizes) < 2
    if even and (not a_line or math.prod(sizes) == 2):
        assert steps(walk)[0] == 1
    if a_line:
        assert steps(walk)[0] == math.prod(sizes) - 1


def test_a_block_of_two_rows():
    assert closed_walk((2, 3)) == [(0, 1), (0, 2), (1, 2), (1, 1), (1, 0), (0, 0)]


@pytest.mark.parametrize("text", ["dp2-sp4", "sp8", "dp2-sp2-tp2", "tp8"])
def test_devices_without_coordinates_keep_their_order(devices, text):
    """Red when a CPU's devices are put in another order, or asked where their chips are."""
    mesh = make_mesh(parse_layout(text), devices)
    np.testing.assert_array_equal(mesh.devices.ravel(), devices)
