"""How long a collective takes on the links between chips: a bound from the chips' coordinates.

A slice is a grid of chips. Each is linked to its neighbours along every axis, and an axis that the
slice closes links its ends, too (`Slice.closed`). All groups of a collective transfer at once. With
w the bytes/s of one link in one direction and b what each device sends (`collectives.py`):

* All-gather, reduce-scatter, all-reduce and broadcast of a group that fills a block of chips:
  whatever the algorithm, b bytes reach every device through the links that its chip has inside the
  block. A corner has fewest: one for each side longer than 1, two for a closed side. Seconds =
  b / (links x w): b/w on a line, b/2w on 2x2, 2x4, 4x4 and on a ring, b/3w on 2x2x2, b/4w on 16x16.
* The same of a group that does not fill its block: a ring in the group's order, half of b each way
  round, every message routed as below. A pair sends all of b to the other.
* All-to-all and permute: each message goes along the first axis, then the second, then the third,
  the shorter way round, half and half where both ways are as long; seconds = bytes over the busiest
  link / w. For an all-to-all within a block that is the cut through the middle of its longest side:
  with n chips on that side (even) and o = b g / (g - 1) the operand of a group of g, o n / 4w, on a
  closed side half of it: o/w on a line of 4, on 2x4 and on 4x4, o/2w on 2x2, 2 o/w on a ring of 16.

Devices of one chip (v7x has two) share its links: what passes between them takes no link, and what
all of them gather comes to their chip once.
"""

import collections
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

from wan_tpu.planner.collectives import ALL_TO_ALL, PERMUTE, Collective, Groups
from wan_tpu.planner.hardware import Slice

Chip = tuple[int, ...]
"""Coordinates of a chip."""

Coordinates = tuple[Chip, ...]
"""The chip of each device, in the order in which the program numbers its devices."""

Message = tuple[Chip, Chip, float]
"""From, to, bytes."""


def link_seconds(collective: Collective, where: Slice, coordinates: Coordinates) -> float:
    """Seconds of one transfer.

    Args:
        collective: what is sent between which devices of the program.
        where: the slice, for the lengths of its axes and which of them close.
        coordinates: of the program's devices.
    """
    share = _bytes_of_busiest_link(
        collective.kind, collective.groups, coordinates, where.shape, where.closed
    )
    return collective.link_bytes * share / where.chip.link_bandwidth


@functools.lru_cache(maxsize=1024)
def _bytes_of_busiest_link(
    kind: str,
    groups: Groups,
    coordinates: Coordinates,
    shape: tuple[int, ...],
    closed: tuple[bool, ...],
) -> float:
    """Over one link in one direction, for each byte that a device sends."""
    shape, closed = _padded(shape, 1), _padded(closed, False)
    chips = [[coordinates[device] for device in group] for group in groups]
    if kind in PERMUTE:
        return _busiest(((a, b, 1.0) for a, b in chips), shape, closed)
    if kind in ALL_TO_ALL:
        return _busiest(
            (
                (a, b, 1 / (len(group) - 1))
                for group in chips
                for a, b in itertools.permutations(group, 2)
            ),
            shape,
            closed,
        )
    if all(_fills_block(group) for group in chips):
        return max(_share_of_a_corner(group, shape, closed) for group in chips)
    return _busiest((m for group in chips for m in _ring(group)), shape, closed)


def _padded(sizes: tuple, fill: int) -> tuple:
    """Three axes: a flat slice is one chip thick."""
    return (*sizes, *[fill] * (3 - len(sizes)))


def _sides(group: Sequence[Chip]) -> list[int]:
    """Sizes of the smallest block around a group."""
    return [max(axis) - min(axis) + 1 for axis in zip(*group, strict=True)]


def _fills_block(group: Sequence[Chip]) -> bool:
    """Whether a group is all devices of a block: each of its chips, equally often."""
    counts = collections.Counter(group)
    return len(counts) == math.prod(_sides(group)) and len(set(counts.values())) == 1


def _share_of_a_corner(
    group: Sequence[Chip], shape: Sequence[int], closed: Sequence[bool]
) -> float:
    """Bytes over each link of a corner of the block, for each byte that a device sends."""
    sides = _sides(group)
    links = sum(
        2 if closes and side == size else 1
        for side, size, closes in zip(sides, shape, closed, strict=True)
        if side > 1
    )
    if not links:
        return 0.0
    from_outside = len(group) - len(group) // math.prod(sides)
    return from_outside / (len(group) - 1) / links


def _ring(group: Sequence[Chip]) -> Iterator[Message]:
    """Messages of a ring in the group's order, both ways."""
    for a, b in zip(group, [*group[1:], group[0]], strict=True):
        yield a, b, 0.5
        yield b, a, 0.5


def _busiest(messages: Iterable[Message], shape: Sequence[int], closed: Sequence[bool]) -> float:
    """The most bytes over one link in one direction."""
    loads: dict[tuple[Chip, int, int], float] = collections.defaultdict(float)
    for source, target, size in messages:
        at = list(source)
        for axis, goal in enumerate(target):
            for step, count, share in _ways(at[axis], goal, shape[axis], closed[axis]):
                here = at.copy()
                for _ in range(count):
                    loads[tuple(here), axis, step] += size * share
                    here[axis] = (here[axis] + step) % shape[axis]
            at[axis] = goal
    return max(loads.values(), default=0.0)


def _ways(start: int, goal: int, size: int, closes: bool) -> list[tuple[int, int, float]]:
    """Ways along one axis: direction, links, share of the message."""
    ahead, back = (goal - start) % size, (start - goal) % size
    if not closes:
        return [(1, goal - start, 1.0) if goal > start else (-1, start - goal, 1.0)]
    if ahead == back:
        return [(1, ahead, 0.5), (-1, back, 0.5)]
    return [(1, ahead, 1.0) if ahead < back else (-1, back, 1.0)]
