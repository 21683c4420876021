"""From a program's costs to seconds: arithmetic that a reader can redo with a calculator.

Of each operation outside fusions, one run on one device:

* compute seconds = FLOPs / bf16 peak, products of int8 / int8 peak. An attention kernel: cycles by
  static count / clock, where there is a count, else FLOPs / peak.
* memory seconds = HBM bytes by the sliced rule (`costs.py`) / HBM bandwidth.
* the operation takes the larger of the two, and that is the one it is booked on: fetching the next
  tile overlaps with computing this one inside an operation, and operations follow one another.
* link seconds (`links.py`), per collective, are added when the program waits for it; those of
  asynchronous ones are added only so far as all of them together exceed all compute and memory
  seconds.

Next to this stands the compiler's own count: what it expects of every operation but attention
kernels, `estimated_cycles` in the program, over the clock. It asks for more than the peaks do
(docs/calibration.md), so with attention and links as above it is the upper end of a range.

No constant is fitted: peaks, bandwidths and clocks are those of `hardware.py`.
"""

import dataclasses
from collections.abc import Mapping

from wan_tpu.planner.costs import Attention
from wan_tpu.planner.hardware import Chip, Slice
from wan_tpu.planner.links import Coordinates, link_seconds
from wan_tpu.planner.program import Operation, ProgramCosts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Where the time of one run of a program goes.

    Attributes:
        compute: of operations that the matrix units bound; attention included.
        memory: of operations that HBM bounds.
        links: waiting for other chips.
        attention: the part of `compute` that is attention kernels.
        compiler: all operations but attention by the compiler's own `estimated_cycles`; not part
            of the total.
    """

    compute: float = 0.0
    memory: float = 0.0
    links: float = 0.0
    attention: float = 0.0
    compiler: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of one run by the rules."""
        return self.compute + self.memory + self.links

    @property
    def by_compiler(self) -> float:
        """Seconds of one run with the compiler's own count in place of ours but for attention."""
        return self.compiler + self.attention + self.links


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
    compute = memory = links = waiting = attention = compiler = 0.0
    for operation in costs.operations:
        at_compute = operation.times * compute_seconds(operation, where.chip, cycles)
        at_memory = operation.times * operation.hbm_bytes / where.chip.hbm_bandwidth
        compiler += operation.times * operation.compiler_cycles / where.chip.clock_hz
        if operation.attention is not None:
            attention += at_compute
        for collective in operation.collectives:
            seconds = operation.times * link_seconds(collective, where, coordinates)
            if collective.asynchronous:
                waiting += seconds
            else:
                links += seconds
        if not operation.flops and any(not c.asynchronous for c in operation.collectives):
            at_memory = 0.0  # the chip's side of a transfer is faster than its links
        if at_compute >= at_memory:
            compute += at_compute
        else:
            memory += at_memory
    links += max(0.0, waiting - compute - memory)
    return Seconds(
        compute=compute, memory=memory, links=links, attention=attention, compiler=compiler
    )


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


def share_of_peak(costs: ProgramCosts, seconds: Seconds, chip: Chip) -> float:
    """What products and attention take at the chip's peaks, over that time."""
    at_peak = peak_seconds(costs.total("flops"), costs.total("int8_flops"), chip)
    return at_peak / seconds.total if seconds.total else 0.0
