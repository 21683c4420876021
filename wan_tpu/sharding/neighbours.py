"""The order of a mesh's TPU devices: along each axis from a chip to one that it is linked to.

Knows coordinates of chips and nothing of layouts: a grid is an array of devices.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np


def is_block(devices: Sequence[Any]) -> bool:
    """Whether TPU devices are a block without gaps, as `create_device_mesh` wants them."""
    block = _block([_place(device) for device in devices])
    return block is not None and all(
        numbers[-1] - numbers[0] + 1 == len(numbers) for numbers in block
    )


def ordered_along_links(grid: np.ndarray) -> np.ndarray:
    """A grid of TPU devices whose sp and tp neighbours are neighbouring chips.

    `create_device_mesh` takes an axis's block of chips row by row, so that the end of a row is as
    far from the next row as a row is long: on a v6e-32 with dp2-sp16 eight hops, and a ring waits
    for its longest. Here the order goes round the block instead (`closed_walk`). Every group of
    devices along any axis stays the same set, so gathers, all-to-alls and reductions cost what they
    did.

    Args:
        grid: devices `[dp, sp, tp]`.
    """
    for axis in (1, 2):
        grid = grid.take(_order_along_links(np.moveaxis(grid, axis, 0)), axis)
    # Pictures are cut over all axes at once, so a closed ring starts where one dp index then ends
    # nearest to the next. (Where a line started elsewhere, it would have its long way inside.)
    turned = [np.roll(grid, turn, axis=1) for turn in range(grid.shape[1])]
    return min(turned, key=lambda grid: (_longest_hop(grid, 1), _longest_hop(grid.ravel(), 0)))


def closed_walk(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every point of a box once, one step apart, the last one step from the first if any way does.

    A line cannot be closed: it is walked from end to end, and what a ring sends from its last to
    its first device takes the links in the direction that nothing else uses. Nor can a box with an
    odd number of points.
    """
    even = next((dim for dim, size in enumerate(sizes) if size % 2 == 0), None)
    others = [size for dim, size in enumerate(sizes) if dim != even]
    across = _walk(others)
    if even is None or len(across) == 1:
        return _walk(sizes)
    # Row after row to and fro over all of `across` but its first point, which is the way back.
    there = [
        (row, point)
        for row in range(sizes[even])
        for point in (across[1:] if row % 2 == 0 else across[:0:-1])
    ]
    back = [(row, across[0]) for row in reversed(range(sizes[even]))]
    return [(*point[:even], row, *point[even:]) for row, point in (*there, *back)]


def _walk(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    """Every point of a box once, one step apart, from one corner to another."""
    if not sizes:
        return [()]
    rest = _walk(sizes[1:])
    return [
        (row, *point)
        for row in range(sizes[0])
        for point in (rest if row % 2 == 0 else reversed(rest))
    ]


def _order_along_links(rows: np.ndarray) -> list[int]:
    """In which order to take `rows` of devices, alike at every other index of the mesh.

    The walk is that of the first device of each row; the other columns are the same block elsewhere
    or mirrored. Where these are no block, the order stays what it is.
    """
    places = [_place(device) for device in rows.reshape(len(rows), -1)[:, 0]]
    block = _block(places)
    if block is None:
        return list(range(len(rows)))
    index = {place: row for row, place in enumerate(places)}
    return [
        index[tuple(numbers[step] for numbers, step in zip(block, point, strict=True))]
        for point in closed_walk([len(numbers) for numbers in block])
    ]


def _block(places: Sequence[tuple[int, ...]]) -> list[list[int]] | None:
    """The numbers along each dimension whose every combination is a place; None if some is not."""
    numbers = [sorted(set(along)) for along in zip(*places, strict=True)]
    return numbers if set(places) == set(itertools.product(*numbers)) else None


def _place(device: Any) -> tuple[int, ...]:
    """Where a TPU device is: its chip's coordinates and, on chips of two devices, which it is."""
    return (*device.coords, getattr(device, "core_on_chip", 0))


def _longest_hop(grid: np.ndarray, axis: int) -> int:
    """The most links between one device and the next along an axis.

    Devices of one chip are no hop apart. Counted as if no torus closed, so never too few.
    """
    rows = np.moveaxis(grid, axis, 0)
    hops = (
        sum(abs(x - y) for x, y in zip(a.coords, b.coords, strict=True))
        for a, b in zip(rows[:-1].flat, rows[1:].flat, strict=True)
    )
    return max(hops, default=0)
