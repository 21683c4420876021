"""Reads the schedule that libtpu writes of a kernel: regions, and which part of it each is.

Regions nest as the kernel's loops and branches do; the largest is one step of the grid.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

from wan_tpu.attention.flash_blocks import Blocks
from wan_tpu.errors import WanTpuError
from wan_tpu.planner.kernels import tile_name, tile_sizes


class KernelCountError(WanTpuError):
    """The compiler did not write the schedule, or it cannot be read."""


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
    """A part of a schedule: what a loop, a branch or a step of the grid runs.

    Attributes:
        start: address of the first bundle.
        end: address of the last one.
        inside: regions directly inside, by address.
    """

    start: int
    end: int
    inside: "tuple[Region, ...]"

    @property
    def bundles(self) -> int:
        """How many, with what is inside."""
        return self.end - self.start + 1

    def largest(self, count: int) -> "tuple[Region, ...]":
        """The largest regions directly inside, by address.

        Raises:
            KernelCountError: there are fewer.
        """
        if len(self.inside) < count:
            raise KernelCountError(f"{count} regions were expected in {self}")
        largest = sorted(self.inside, key=lambda region: -region.bundles)[:count]
        return tuple(sorted(largest, key=lambda region: region.start))


def read_schedule(folder: pathlib.Path) -> Region:
    """One grid step of the largest kernel written into `folder`.

    Raises:
        KernelCountError: there is none.
    """
    programs = sorted(folder.glob("*-final_bundles.txt"), key=lambda p: p.stat().st_size)
    if not programs:
        raise KernelCountError(f"the compiler wrote no schedule into {folder}")
    with programs[-1].open(encoding="utf-8", errors="replace") as lines:
        spans = set(_spans(lines))
    if not spans:
        raise KernelCountError(f"{programs[-1].name} has no regions")
    return _nest(sorted(spans, key=lambda span: (span[0], -span[1])))


def _nest(spans: Sequence[tuple[int, int]]) -> Region:
    """The largest of the spans, sorted by start and then size, with those inside it."""

    def make(span: tuple[int, int]) -> Region:
        inside, end = [], span[0] - 1
        for other in spans:
            if other != span and span[0] <= other[0] and other[1] <= span[1] and other[0] > end:
                inside.append(make(other))
                end = other[1]
        return Region(*span, tuple(inside))

    return make(max(spans, key=lambda span: span[1] - span[0]))


def _spans(lines: Iterable[str]) -> Iterator[tuple[int, int]]:
    """First and last address of each region of a schedule."""
    starts: dict[str, int] = {}
    for line in lines:
        address = re.match(r"\s*(0x[0-9a-f]+|0)\s", line)
        if address is None:
            continue
        position = int(address[1], 16)
        starts.update(dict.fromkeys(re.findall(r"Start region (\d+)", line), position))
        for region in re.findall(r"End region (\d+)", line):
            if region in starts:
                yield starts[region], position


def splash_parts(step: Region, grid: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    """Parts of a kernel whose grid ends with the keys and whose tile holds most of a step."""
    body = step
    while body.inside and 2 * body.largest(1)[0].bundles > body.bundles:
        body = body.largest(1)[0]
    *rows, steps_of_row = grid
    return {
        "tile": (body.bundles, math.prod(rows) * steps_of_row),
        "row": (step.bundles - body.bundles, math.prod(rows)),
    }


def flash_bundles(step: Region, blocks: Blocks) -> dict[str, int]:
    """Bundles of each part of our own kernel (`kernels.flash_times`).

    Its branches and loops stand in the order of its code, `wan_tpu.attention.flash_kernel`. A
    block that is done again is not counted.

    Args:
        step: of its grid.
        blocks: sizes of its tiles.
    """
    sizes = tile_sizes(blocks)
    start, attend, finish = step.largest(3)
    (attempt,) = attend.largest(1)
    *loops, again = attempt.largest(len(sizes) + 1)
    tiles = [loop.largest(1)[0].bundles for loop in loops]
    return {
        "block of queries": start.bundles + finish.bundles,
        "step": step.bundles - start.bundles - attend.bundles - finish.bundles,
        "block of keys": attend.bundles - sum(tiles) - again.bundles,
        **{tile_name(size): count for size, count in zip(sizes, tiles, strict=True)},
    }


def short_bundles(step: Region) -> dict[str, int]:
    """Bundles of the kernel for few keys (`wan_tpu.attention.flash_short`), which is one piece.

    A block that is done again is not counted: the last part of the step.

    Args:
        step: of its grid.

    Raises:
        KernelCountError: the schedule has another form.
    """
    (body,) = step.largest(1)
    _, again = body.largest(2)
    return {"block of queries": step.bundles - again.bundles}


def backward_bundles(step: Region, blocks: Blocks) -> dict[str, int]:
    """Bundles of each part of our own backward kernel (`kernels.backward_times`).

    In the order of its code, `wan_tpu.attention.flash_backward`: keys are taken, the loops over
    tiles, each of them at the end of its region, then sums are added, sums are kept, a block of
    queries ends, a block of keys ends.

    Args:
        step: of its grid.
        blocks: sizes of its tiles.

    Raises:
        KernelCountError: the schedule has another form.
    """
    (body,), sizes = step.largest(1), tile_sizes(blocks)
    ends_in_loop = [r for r in body.inside if r.inside and r.inside[-1].end == r.end]
    loops = ends_in_loop[-len(sizes) :]
    before = [r for r in body.inside if loops and r.end < loops[0].start]
    after = [r for r in body.inside if loops and r.start > loops[-1].end][:4]
    if len(loops) < len(sizes) or not before or len(after) < 4:
        raise KernelCountError(f"a backward kernel's regions were expected in {body}")
    take_keys = max(before, key=lambda region: region.bundles)
    add, keep, end_queries, end_keys = (region.bundles for region in after)
    tiles = [loop.inside[-1].bundles for loop in loops]
    parts = {
        "block of keys": take_keys.bundles + end_keys,
        "sums of a block": add + keep,
        "block of queries": end_queries,
    }
    return {
        "step": step.bundles - sum(parts.values()) - sum(tiles),
        **parts,
        **{tile_name(size): count for size, count in zip(sizes, tiles, strict=True)},
    }
