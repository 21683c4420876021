"""Jobs a second with more and more slices, and where the seconds go that no engine takes."""

import dataclasses
import itertools
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import psutil

from benchmarks.fleet.running import (
    LAG_SECONDS,
    STEP_SECONDS,
    Made,
    MeasuredFleet,
    difference,
    per,
    total,
)

IDLE_SECONDS = 6.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """So many jobs made by so many slices.

    Attributes:
        slices: that made them.
        jobs: how many there were, alike.
        wall_seconds: from the first start to the last row.
        engine_seconds: of a job, the mean.
        inside_seconds: of a job at its slice beside the engine, the median: announced, files put
            into the bucket, result handed in.
        between_seconds: from a slice's result until it has the next job, the median.
        counts: what the servers behind the fleet counted, of a job: more than when all are idle.
        idle: what they counted while nobody had a job, of a second.
        cpu_seconds: that each part took, of a job.
        busy: share of this machine's processors that was not idle.
    """

    slices: int
    jobs: int
    wall_seconds: float
    engine_seconds: float
    inside_seconds: float
    between_seconds: float
    counts: dict[str, float]
    idle: dict[str, float]
    cpu_seconds: dict[str, float]
    busy: float

    @property
    def rate(self) -> float:
        """Jobs a second."""
        return self.jobs / self.wall_seconds

    @property
    def overhead_seconds(self) -> float:
        """Of a job: how long a slice is about it, less what the engine takes."""
        return self.slices * self.wall_seconds / self.jobs - self.engine_seconds

    def share_of_linear(self, one: "Grown") -> float:
        """Of what so many times the slices of `one` would make."""
        return self.rate / one.rate * one.slices / self.slices


def measure(fleet: MeasuredFleet, sizes: Sequence[int], each: int, steps: int) -> list[Grown]:
    """Makes so many jobs for each slice, with ever more slices of the same fleet."""
    found = []
    for slices in sizes:
        fleet.have(slices)
        fleet.wait_finished(fleet.post(slices, 1))  # what is loaded at a first job is
        fleet.have(slices)
        time.sleep(LAG_SECONDS)
        before, begun = fleet.counts(), time.monotonic()
        time.sleep(IDLE_SECONDS)
        counts, cpu, between = fleet.counts(), fleet.cpu_seconds(), time.monotonic()
        idle = per(difference(before, counts), between - begun)
        psutil.cpu_percent()
        job_ids = fleet.post(slices * each, steps)
        fleet.wait_finished(job_ids)
        busy, cpu = psutil.cpu_percent() / 100, difference(cpu, fleet.cpu_seconds())
        time.sleep(LAG_SECONDS)
        counts, seconds = difference(counts, fleet.counts()), time.monotonic() - between
        row = summed_up(
            slices, fleet.made(job_ids), net(counts, idle, seconds), cpu, idle=idle, busy=busy
        )
        found.append(row)
        sys.stderr.write(f"{slices} slices: {found[-1].rate:.3f} jobs a second\n")
    return found


def summed_up(
    slices: int,
    made: Sequence[Made],
    counts: dict[str, float],
    cpu: dict[str, float],
    *,
    idle: dict[str, float],
    busy: float,
) -> Grown:
    """The row of jobs that were made; `counts` and `cpu` are those of all of them."""
    inside = [each.handed_in - each.started - each.engine_seconds for each in made]
    between = gaps(made)
    return Grown(
        slices=slices,
        jobs=len(made),
        wall_seconds=max(each.recorded for each in made) - min(each.started for each in made),
        engine_seconds=statistics.mean(each.engine_seconds for each in made),
        inside_seconds=statistics.median(inside),
        between_seconds=statistics.median(between) if between else 0.0,
        counts=per(counts, len(made)),
        idle=idle,
        cpu_seconds=per(cpu, len(made)),
        busy=busy,
    )


def net(counts: dict[str, float], idle: dict[str, float], seconds: float) -> dict[str, float]:
    """What was counted in so many seconds beyond what is counted in as many idle ones."""
    return {name: value - seconds * idle.get(name, 0.0) for name, value in counts.items()}


def gaps(made: Sequence[Made]) -> list[float]:
    """Seconds between two jobs of the same slice."""
    found = []
    for name in {each.slice for each in made}:
        mine = sorted((each for each in made if each.slice == name), key=lambda each: each.started)
        found += [after.started - before.handed_in for before, after in itertools.pairwise(mine)]
    return found


def report(rows: Sequence[Grown], steps: int) -> list[str]:
    """A line for each number of slices, and what a job costs the rest."""
    one = rows[0]
    lines = [
        f"scaling: jobs of {steps} steps of {STEP_SECONDS:g} s",
        f"{'slices':>6}{'jobs':>6}{'wall s':>8}{'jobs/s':>8}{'linear':>8}{'engine s':>10}"
        f"{'over s':>8}{'inside':>8}{'between':>9}{'busy':>7}",
    ]
    for row in rows:
        lines.append(
            f"{row.slices:>6}{row.jobs:>6}{row.wall_seconds:>8.2f}{row.rate:>8.3f}"
            f"{row.share_of_linear(one):>8.1%}{row.engine_seconds:>10.3f}"
            f"{row.overhead_seconds:>8.3f}{row.inside_seconds:>8.3f}{row.between_seconds:>9.3f}"
            f"{row.busy:>7.0%}"
        )
    lines += ["", "of a job, with the most slices:"]
    last = rows[-1]
    for kind in ("temporal", "persistence", "s3", "postgres"):
        if kind != "postgres":
            lines.append(f"  {kind}: {total(last.counts, kind):.1f}")
        lines += _named(last.counts, kind)
    parts = ", ".join(f"{name} {1000 * each:.0f}" for name, each in last.cpu_seconds.items())
    return [*lines, f"  processor ms: {parts}", ""]


def _named(counts: dict[str, float], kind: str) -> list[str]:
    mine: list[tuple[str, Any]] = [
        (name, value) for name, value in counts.items() if name.startswith(f"{kind} ")
    ]
    mine.sort(key=lambda each: -each[1])
    return [f"    {name}: {value:.2f}" for name, value in mine if value >= 0.01]
