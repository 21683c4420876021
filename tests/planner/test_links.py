"""The link model: hand-computed cases on grids, and the devices of real meshes."""

import itertools

import pytest

from wan_tpu.planner.collectives import Collective
from wan_tpu.planner.compile import slice_devices
from wan_tpu.planner.hardware import find_slice
from wan_tpu.planner.links import link_seconds
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh

GATHER, ALL_TO_ALL, PERMUTE = "all-gather", "all-to-all", "collective-permute"
LINK = {"v6e": 100e9, "v5p": 100e9, "v7x": 100e9}
BYTES = 1e9


def block(*sides):
    """Coordinates of a block of chips, the first axis fastest."""
    sides = (*sides, *[1] * (3 - len(sides)))
    return tuple(
        point[::-1] for point in itertools.product(*(range(side) for side in reversed(sides)))
    )


def link_bytes(kind, chips, slice_name, *, groups=None, sent=BYTES):
    """Bytes over the busiest link, in those that a device sends."""
    where = find_slice(slice_name)
    groups = groups or (tuple(range(len(chips))),)
    collective = Collective(kind=kind, groups=groups, link_bytes=round(sent))
    return link_seconds(collective, where, chips) * where.chip.link_bandwidth / sent


@pytest.mark.parametrize(
    ("chips", "slice_name", "expected"),
    [
        # One link feeds the end of a line; two a corner; two a chip on a ring.
        (block(4), "v6e-16", 1.0),
        (block(2, 2), "v6e-8", 1 / 2),
        (block(4, 2), "v6e-16", 1 / 2),
        (block(2, 4), "v6e-8", 1 / 2),
        (block(4, 4), "v6e-16", 1 / 2),
        (block(16), "v6e-256", 1 / 2),
        (block(8), "v6e-256", 1.0),
        (block(16, 2), "v6e-256", 1 / 3),
        (block(16, 16), "v6e-256", 1 / 4),
        (block(2, 2, 2), "v5p-16", 1 / 3),
        (block(4, 4, 4), "v5p-128", 1 / 6),
        # 2x4x4 chips are no whole cube: lines.
        (block(1, 4), "v5p-64", 1.0),
        (block(4), "v5p-128", 1 / 2),
    ],
)
@pytest.mark.parametrize("kind", [GATHER, "reduce-scatter", "all-reduce"])
def test_a_gather_waits_for_the_corner(kind, chips, slice_name, expected):
    assert link_bytes(kind, chips, slice_name) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("chips", "slice_name", "expected"),
    [
        # In operands of a device: longest side / 4, half of it on a ring.
        (block(2), "v6e-8", 2 / 4),
        (block(4), "v6e-16", 4 / 4),
        (block(2, 2), "v6e-8", 2 / 4),
        (block(4, 2), "v6e-16", 4 / 4),
        (block(2, 4), "v6e-8", 4 / 4),
        (block(4, 4), "v6e-16", 4 / 4),
        (block(3), "v6e-16", 2 / 3),  # an odd line: 1 chip x 2/3 of its operand
        (block(16), "v6e-256", 16 / 8),
        (block(8, 2), "v6e-256", 8 / 4),
        (block(2, 2, 2), "v5p-16", 2 / 4),
    ],
)
def test_an_all_to_all_waits_for_the_cut_through_its_longest_side(chips, slice_name, expected):
    """Red when a group of 4 is taken for a line: twice too long on 2x2."""
    size = len(chips)
    operand = BYTES * (size - 1) / size  # what of an operand of BYTES is sent
    busiest = link_bytes(ALL_TO_ALL, chips, slice_name, sent=operand) * operand / BYTES
    assert busiest == pytest.approx(expected)


@pytest.mark.parametrize(
    ("pairs", "slice_name", "expected"),
    [
        (((0, 1), (2, 3)), "v6e-8", 1),  # neighbours
        (((0, 6), (1, 7)), "v6e-8", 1),  # three links far, no link twice
        (((0, 4), (2, 6)), "v6e-8", 2),  # the first from row 0 to 2, the second from row 1 to 3
        (((0, 4), (4, 0)), "v6e-8", 1),  # there and back: a link has two directions
        (((0, 0), (1, 1)), "v6e-8", 0),  # nowhere
        (((0, 4), (2, 6), (3, 7)), "v6e-8", 2),
    ],
)
def test_permutes_count_hops_and_who_shares_a_link(pairs, slice_name, expected):
    busiest = link_bytes(PERMUTE, block(2, 4), slice_name, groups=pairs)
    assert busiest == pytest.approx(expected)


def test_a_ring_of_devices_row_by_row_goes_back_over_itself():
    """4x2 row by row: from the end of row 0 back to the start of row 1 over all three links."""
    shift = tuple((device, (device + 1) % 8) for device in range(8))
    assert link_bytes(PERMUTE, block(4, 2), "v6e-16", groups=shift) == pytest.approx(1)
    snake = (0, 1, 2, 3, 7, 6, 5, 4)
    ring = tuple(zip(snake, (*snake[1:], 0), strict=True))
    assert link_bytes(PERMUTE, block(4, 2), "v6e-16", groups=ring) == pytest.approx(1)
    far = tuple((device, (device + 2) % 8) for device in range(8))
    assert link_bytes(PERMUTE, block(4, 2), "v6e-16", groups=far) == pytest.approx(2)


def test_half_the_way_round_a_ring_goes_both_ways():
    assert link_bytes(PERMUTE, block(16), "v6e-256", groups=((0, 8),)) == pytest.approx(1 / 2)
    assert link_bytes(PERMUTE, block(16), "v6e-256", groups=((0, 15),)) == pytest.approx(1)


def test_groups_that_fill_no_block_share_links():
    """Pairs (y, y + 2) of one column of 2x4: both cross the middle, each sends all it has."""
    pairs = ((0, 4), (1, 5), (2, 6), (3, 7))
    for kind in (GATHER, "all-reduce", ALL_TO_ALL):
        assert link_bytes(kind, block(2, 4), "v6e-8", groups=pairs) == pytest.approx(2)


def test_devices_of_one_chip_take_no_link_and_gather_once():
    chips = tuple(chip for chip in block(2, 2) for _ in range(2))  # v7x: two devices a chip
    pairs = tuple((device, device + 1) for device in range(0, 8, 2))
    assert link_bytes(GATHER, chips, "v7x-8", groups=pairs) == 0
    assert link_bytes(PERMUTE, chips, "v7x-8", groups=pairs) == 0
    # Of 7 parts that a device gathers 6 come from other chips, over a corner's two links.
    assert link_bytes(GATHER, chips, "v7x-8") == pytest.approx(6 / 7 / 2)


@pytest.mark.parametrize(
    ("slice_name", "layout", "operands"),
    [
        ("v6e-8", "dp2-sp4", 1 / 2),
        ("v6e-8", "sp8", 1),
        ("v6e-16", "dp2-sp8", 1),
        ("v6e-16", "sp16", 1),
    ],
)
def test_the_all_to_all_of_ulysses_on_the_mesh_that_is_used(slice_name, layout, operands):
    """By the coordinates of `make_mesh`, whatever order it takes: sp4 lies on 2x2, sp8 on 4x2."""
    layout = parse_layout(layout)
    mesh = make_mesh(layout, slice_devices(find_slice(slice_name)))
    chips = tuple(tuple(device.coords) for device in mesh.devices.flat)
    groups = tuple(
        tuple(range(start, start + layout.sp)) for start in range(0, len(chips), layout.sp)
    )
    sent = BYTES * (layout.sp - 1) / layout.sp
    busiest = link_bytes(ALL_TO_ALL, chips, slice_name, groups=groups, sent=sent)
    assert busiest * sent / BYTES == pytest.approx(operands)


def test_the_exchanges_of_the_14b_step():
    """4 a layer of 40, operands of 194 MB: 0.155 s. Red at 0.31 when sp4 is a line of chips."""
    layout = parse_layout("dp2-sp4")
    mesh = make_mesh(layout, slice_devices(find_slice("v6e-8")))
    chips = tuple(tuple(device.coords) for device in mesh.devices.flat)
    operand = 4 * 18_944 * 1280 * 2  # chunks, tokens and features of ten heads, bfloat16
    exchange = Collective(
        kind=ALL_TO_ALL, groups=((0, 1, 2, 3), (4, 5, 6, 7)), link_bytes=operand * 3 // 4
    )
    seconds = 4 * 40 * link_seconds(exchange, find_slice("v6e-8"), chips)
    assert seconds == pytest.approx(0.155, abs=0.001)
