"""From a program's costs to seconds: arithmetic that a reader can redo with a calculator.

Of each operation outside fusions, one run on one device:

* compute seconds = FLOPs / bf16 peak, products of int8 / int8 peak. An attention kernel: cycles by
  static count / clock, where there is a count, else FLOPs / peak.
* memory seconds = HBM bytes by the sliced rule (`costs.py`) / HBM bandwidth.
* the operation takes the larger of the two, and that is the one it is booked on: fetching the next
  tile overlaps with computing this one inside an operation, and operations follow one another.
* link seconds (`links.py`) of a collective are exposed where the program waits for it: whole where
  it goes on only afterwards, else what is left when it comes to the end of it. Until then what
  stands between start and end in the schedule hides it, and that is counted by the compiler, as
  below: it is the compiler's schedule. Links carry one transfer at a time, in the order in which
  they start. Exposed seconds are added; the hidden ones are shown.

Next to this stands the compiler's own count: what it expects of every operation,
`estimated_cycles` in the program, over the clock. It says nothing of Pallas kernels, which go by
the rules above. It asks for more than the peaks do (docs/calibration.md), so with exposed links it
is the upper end of a range.

No constant is fitted: peaks, bandwidths and clocks are those of `hardware.py`.
"""

import dataclasses
from collections.abc import Mapping

from wan_tpu.planner.costs import Attention
from wan_tpu.planner.hardware import Chip, Slice
from wan_tpu.planner.links import Coordinates, link_seconds
from wan_tpu.planner.program import KERNEL, Operation, ProgramCosts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Where the time of one run of a program goes.

    Attributes:
        compute: of operations that the matrix units bound; attention included.
        memory: of operations that HBM bounds.
        exposed: waiting for other chips.
        hidden: of transfers, behind other operations; not part of any total.
        attention: the part of `compute` that is attention kernels.
        compiler: all operations but attention by the compiler's own `estimated_cycles`, Pallas
            kernels as in `compute` and `memory`; in place of these two in `by_compiler`.
        kernels: the part of `compute` and `memory`, and of `compiler` likewise, that is other
            Pallas kernels: by the peaks in every total.
    """

    compute: float = 0.0
    memory: float = 0.0
    exposed: float = 0.0
    hidden: float = 0.0
    attention: float = 0.0
    compiler: float = 0.0
    kernels: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of one run by the rules."""
        return self.compute + self.memory + self.exposed

    @property
    def by_compiler(self) -> float:
        """Seconds of one run with the compiler's own count in place of ours but for attention."""
        return self.compiler + self.attention + self.exposed

    @property
    def range(self) -> tuple[float, float]:
        """The two, the smaller first."""
        return min(self.total, self.by_compiler), max(self.total, self.by_compiler)


CyclesPerHead = Mapping[Attention, int]
"""Cycles for one head on one core, by the shape of the kernel."""


def estimate(
    costs: ProgramCosts, where: Slice, coordinates: Coordinates, cycles: CyclesPerHead
) -> Seconds:
    """Seconds of one run of a program on a slice.

    Args:
        costs: of the program.
        where: the slice it was compiled for.
        coordinates: the chip of each of the program's devices.
        cycles: static counts of its attention kernels; a kernel without one goes by its FLOPs.
    """
    chip = where.chip
    compute = memory = attention = compiler = kernels = 0.0
    links = _Links()
    for position, operation in enumerate(costs.operations):
        at_compute = operation.times * compute_seconds(operation, chip, cycles)
        at_memory = operation.times * operation.hbm_bytes / chip.hbm_bandwidth
        sent = operation.times * sum(
            link_seconds(c, where, coordinates) for c in operation.collectives
        )
        if not operation.flops and operation.collectives:
            at_memory = 0.0  # the chip's side of a transfer is faster than its links
        if at_compute >= at_memory:
            compute += at_compute
        else:
            memory += at_memory
        if operation.attention is not None:
            counted = at_compute
            attention += counted
        else:
            counted = operation.times * operation.compiler_cycles / chip.clock_hz
            if operation.kind == KERNEL and not counted:
                counted = max(at_compute, at_memory)
                kernels += counted
            compiler += counted
        links.run(position, sent, counted, operation.waited_at)
    return Seconds(
        compute=compute,
        memory=memory,
        exposed=links.exposed(),
        hidden=max(0.0, links.sent - links.exposed()),
        attention=attention,
        compiler=compiler,
        kernels=kernels,
    )


class _Links:
    """Goes through a schedule with two clocks: the program's, and the links'."""

    def __init__(self) -> None:
        self.sent = 0.0
        self._now = self._free = self._waited = 0.0
        self._ends: dict[int, float] = {}

    def run(self, position: int, sent: float, counted: float, waited_at: int | None) -> None:
        """One operation, all its runs at once: of a loop's body every turn is alike.

        Args:
            position: of it, in the order of the schedule.
            sent: seconds of what it sends.
            counted: seconds of its own.
            waited_at: the position before which the program waits for what is sent; None: at once.
        """
        self._wait(self._ends.pop(position, 0.0))
        if sent:
            self.sent += sent
            self._free = max(self._free, self._now) + sent
            if waited_at is None:
                self._wait(self._free)
            else:
                self._ends[waited_at] = self._free
        self._now += counted

    def exposed(self) -> float:
        """Seconds waited, up to the end of all that was sent."""
        return self._waited + max(0.0, max(self._ends.values(), default=0.0) - self._now)

    def _wait(self, end: float) -> None:
        self._waited += max(0.0, end - self._now)
        self._now = max(self._now, end)


def compute_seconds(operation: Operation, chip: Chip, cycles: CyclesPerHead) -> float:
    """Matrix unit seconds of one run of an operation."""
    shape = operation.attention
    if shape is not None and shape in cycles:
        # A gradient's kernel goes through its blocks in order, on one core.
        cores = 1 if shape.is_backward else chip.cores_per_device
        return cycles[shape] * shape.heads / cores / chip.clock_hz
    return peak_seconds(operation.flops, operation.int8_flops, chip)


def peak_seconds(flops: int, int8_flops: int, chip: Chip) -> float:
    """What products take at the chip's peaks; `int8_flops` of them are of int8."""
    return (flops - int8_flops) / chip.bf16_flops + int8_flops / chip.int8_flops
