"""Meshes over the chips of slices that are not here: how far neighbours are, who is with whom.

Coordinates are those that libtpu gives. Nothing is compiled.
"""

import itertools

import numpy as np
import pytest
from jax.experimental import mesh_utils

from wan_tpu.planner.compile import slice_devices
from wan_tpu.planner.hardware import find_slice
from wan_tpu.sharding.layout import factorisations, parse_layout
from wan_tpu.sharding.mesh import make_mesh, named

DP, SP, TP = 0, 1, 2

SLICES = ("v6e-4", "v6e-8", "v6e-16", "v6e-32", "v6e-64", "v5e-16", "v5p-8", "v5p-16", "v5p-32",
          "v5p-128", "v7x-8", "v7x-32", "v7x-64")  # fmt: skip


def grids(slice_name, layout):
    """(as `create_device_mesh` leaves it, as ours is), devices `[dp, sp, tp]`."""
    devices = slice_devices(find_slice(slice_name))
    before = mesh_utils.create_device_mesh(layout.shape, devices, allow_split_physical_axes=True)
    return before, make_mesh(layout, devices).devices


def hops(one, other):
    """Links from one chip to another, no torus being closed."""
    return sum(abs(a - b) for a, b in zip(one.coords, other.coords, strict=True))


def ring_hops(grid, axis):
    """(the most between neighbours, from the last to the first) over all rings along an axis."""
    rings = np.moveaxis(grid, axis, -1).reshape(-1, grid.shape[axis])
    inside = (hops(a, b) for ring in rings for a, b in itertools.pairwise(ring))
    return max(inside, default=0), max(hops(ring[-1], ring[0]) for ring in rings)


def halo_hops(grid):
    """The most between neighbours when all axes together cut one dimension, as the VAE's width."""
    return max(hops(a, b) for a, b in itertools.pairwise(grid.flat))


@pytest.mark.parametrize(
    ("slice_name", "text", "before", "after"),
    [
        ("v6e-8", "sp8", (2, 2), (1, 1)),
        ("v6e-8", "dp2-sp4", (2, 2), (1, 1)),
        ("v6e-16", "dp2-sp8", (2, 4), (1, 1)),
        ("v6e-32", "dp2-sp16", (8, 8), (1, 1)),
        ("v6e-32", "sp32", (8, 10), (1, 1)),
        ("v6e-64", "dp2-sp32", (4, 10), (1, 1)),
        ("v5p-8", "sp4", (2, 2), (1, 1)),
        ("v5p-16", "sp8", (3, 3), (1, 1)),
        ("v5p-32", "dp2-sp8", (4, 4), (1, 1)),
        ("v5p-64", "dp2-sp16", (4, 6), (1, 1)),
        ("v5p-128", "sp64", (7, 9), (1, 1)),
        ("v7x-32", "dp2-sp16", (2, 2), (1, 1)),
        ("v7x-64", "sp64", (7, 7), (1, 0)),
        # A line of chips: nothing goes further than one link but from its last to its first.
        ("v6e-16", "dp2-sp4-tp2", (1, 3), (1, 3)),
        # tp takes every other chip of a row.
        ("v6e-32", "sp16-tp2", (9, 9), (2, 2)),
    ],
)
def test_neighbours_of_a_ring_are_neighbouring_chips(slice_name, text, before, after):
    """(between neighbours, from the last to the first), of `create_device_mesh` and of ours."""
    grid_before, grid = grids(slice_name, parse_layout(text))
    assert ring_hops(grid_before, SP) == before
    assert ring_hops(grid, SP) == after


@pytest.mark.parametrize(
    ("slice_name", "text", "before", "after"),
    [
        ("v6e-8", "dp2-sp4", 2, 1),
        ("v6e-8", "tp8", 2, 1),
        ("v6e-16", "dp2-sp8", 4, 1),
        ("v6e-32", "dp2-sp16", 8, 1),
        ("v5p-32", "dp2-sp8", 5, 2),
        ("v7x-8", "dp2-sp4", 1, 1),
    ],
)
def test_columns_of_a_picture_lie_side_by_side(slice_name, text, before, after):
    """Red when the ring of one dp index ends far from where the next one's starts."""
    grid_before, grid = grids(slice_name, parse_layout(text))
    assert halo_hops(grid_before) == before
    assert halo_hops(grid) == after


@pytest.mark.parametrize("slice_name", SLICES)
def test_every_layout_keeps_its_groups_and_no_way_grows(slice_name):
    """Who gathers, reduces and trades with whom is as before, for dp, sp and tp and for any of them
    together; only the order within a group is ours. Red when dp indices are reordered each by
    itself: their pairs are others then."""
    for layout in factorisations(find_slice(slice_name).num_devices):
        before, after = grids(slice_name, layout)
        for axes in ((DP,), (SP,), (TP,), (DP, SP), (DP, TP), (SP, TP), (DP, SP, TP)):
            assert groups(after, axes) == groups(before, axes), f"{slice_name} {layout} {axes}"
        for axis in (SP, TP):
            assert ring_hops(after, axis) <= ring_hops(before, axis), f"{slice_name} {layout}"
            assert max(ring_hops(after, axis)) <= max(ring_hops(before, axis))


def groups(grid, axes):
    """The devices that differ along `axes` only, as sets."""
    last = np.moveaxis(grid, axes, range(-len(axes), 0))
    rows = last.reshape(-1, int(np.prod([grid.shape[axis] for axis in axes])))
    return {frozenset(device.id for device in row) for row in rows}


@pytest.mark.parametrize(
    ("slice_name", "part", "text"),
    [
        ("v6e-8", slice(3), "sp3"),
        ("v6e-8", slice(7), "sp7"),
        ("v6e-8", slice(6), "dp2-sp3"),
        ("v6e-8", slice(0, 8, 2), "dp2-sp2"),
        ("v6e-16", slice(8, 16), "sp8"),
        ("v7x-8", slice(6), "dp2-sp3"),
    ],
)
def test_any_part_of_a_slice_makes_a_mesh(slice_name, part, text):
    """Red for those that are no block, or one with gaps, when `create_device_mesh` is asked."""
    devices = slice_devices(find_slice(slice_name))[part]
    found = make_mesh(parse_layout(text), devices).devices
    assert {device.id for device in found.flat} == {device.id for device in devices}


def test_devices_of_a_process_need_not_follow_one_another():
    """On a v6e-16, four hosts, a shard of an array is where the mesh says, though no host's devices
    are a block of the mesh (`tests/multihost/test_same_video.py` makes a video so)."""
    mesh = make_mesh(parse_layout("dp2-sp8"), slice_devices(find_slice("v6e-16")))
    processes = [device.process_index for device in mesh.devices.flat]
    assert len(set(processes)) == 4
    changes = sum(a != b for a, b in itertools.pairwise(processes))
    assert changes > 3, "the walk leaves hosts and comes back"
    sharding = named(mesh, ("dp", "sp"))
    where = sharding.devices_indices_map((32,))
    for position, device in enumerate(mesh.devices.flat):
        assert where[device] == (slice(2 * position, 2 * position + 2),)
