"""What polls wait, and that Temporal does not hear of them."""

import asyncio
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import psutil

from benchmarks.fleet.running import LAG_SECONDS, MeasuredFleet, difference, per, total
from benchmarks.service import LIST_PATH, Load, polling_process, share_at

HERTZ = 10
"""Polls of one client a second."""

NULL = "null"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Polled:
    """A turn of so many polls a second, over all servers of the API.

    Attributes:
        hertz: polls a second that were due.
        is_null: whether a server that only answers was asked instead.
        seconds: that were counted.
        from_due: of each poll in seconds, ascending, from when it was due.
        errors: of polls.
        counts: what the servers behind the fleet counted, of a second.
        cpu: processor seconds of each part, of a second.
        busy: share of this machine's processors that was not idle.
    """

    hertz: int
    is_null: bool
    seconds: float
    from_due: tuple[float, ...]
    errors: tuple[str, ...]
    counts: dict[str, float]
    cpu: dict[str, float]
    busy: float


def measure(
    fleet: MeasuredFleet,
    *,
    rates: Sequence[int],
    slices: int,
    queued: int,
    steps: int,
    seconds: float,
    repeats: int,
) -> list[Polled]:
    """Turns of each rate, and of the highest against a server that only answers."""
    fleet.have(slices)
    # Enough that the queue never ends, and that some job always runs.
    job_ids = fleet.post(queued + slices, steps)
    fleet.wait(lambda: asyncio.run(fleet.is_waiting(job_ids[-1])))
    time.sleep(LAG_SECONDS)
    sample = len(json.dumps(fleet.fleet.ask(f"/v1/videos/{job_ids[-1]}")))
    conditions = [(rate, False) for rate in rates] + [(max(rates), True)]
    found = []
    with polling_process("null", str(sample)) as null:
        assert null.stdout is not None
        null_port = int(null.stdout.readline())
        for repeat in range(repeats):
            # Every other round backwards: a machine that slowly changes favours none.
            for rate, is_null in conditions if repeat % 2 == 0 else conditions[::-1]:
                ports = [null_port] * len(fleet.ports) if is_null else fleet.ports
                turn = _take_turn(fleet, ports, job_ids, rate, seconds, is_null=is_null)
                found.append(turn)
                sys.stderr.write(f"{_line(turn)}\n")
    return found


def _take_turn(
    fleet: MeasuredFleet,
    ports: Sequence[int],
    job_ids: Sequence[str],
    rate: int,
    seconds: float,
    *,
    is_null: bool,
) -> Polled:
    clients = rate // HERTZ // len(ports)
    loads = []
    with contextlib.ExitStack() as stack:
        for port in ports if clients else ():
            words = ("127.0.0.1", str(port), str(clients), str(HERTZ))
            load = Load(stack.enter_context(polling_process("poll", *words)))
            loads.append(load)
        with contextlib.ExitStack() as polling:
            for load in loads:
                paths = [LIST_PATH] * clients + [f"/v1/videos/{each}" for each in job_ids]
                polling.enter_context(load.polling(paths))
            time.sleep(LAG_SECONDS)
            before, cpu, begun = fleet.counts(), fleet.cpu_seconds(), time.monotonic()
            psutil.cpu_percent()
            time.sleep(seconds)
            busy, took = psutil.cpu_percent() / 100, time.monotonic() - begun
            counts, cpu = difference(before, fleet.counts()), difference(cpu, fleet.cpu_seconds())
    results: list[dict[str, Any]] = [load.result for load in loads]
    return Polled(
        hertz=rate,
        is_null=is_null,
        seconds=took,
        from_due=tuple(sorted(each for result in results for each in result["from_due"])),
        errors=tuple(each for result in results for each in result["errors"]),
        counts=per(counts, took),
        cpu=per(cpu, took),
        busy=busy,
    )


def report(turns: Sequence[Polled], queued: int, slices: int) -> list[str]:
    """A line for each turn."""
    lines = [
        f"polls: {queued} jobs wait, {slices} run; two servers of the API",
        f"{'polls/s':<12}{'polls':>7}{'errors':>8}{'p50 ms':>8}{'p99 ms':>8}{'max ms':>8}"
        f"{'Temporal/s':>12}{'looks/s':>9}{'commits/s':>11}{'S3/s':>7}{'APIs':>7}{'busy':>7}",
    ]
    return [*lines, *(_line(turn) for turn in turns), ""]


def _line(turn: Polled) -> str:
    name = f"{turn.hertz} {NULL}" if turn.is_null else str(turn.hertz)
    line = f"{name:<12}{len(turn.from_due):>7}{len(turn.errors):>8}"
    if turn.from_due:
        ordered = [1000 * each for each in turn.from_due]
        line += f"{share_at(ordered, 0.5):>8.1f}{share_at(ordered, 0.99):>8.1f}{ordered[-1]:>8.1f}"
    else:
        line += f"{'-':>8}" * 3
    looks = turn.counts.get("temporal DescribeWorkflowExecution", 0.0)
    return (
        f"{line}{total(turn.counts, 'temporal'):>12.1f}{looks:>9.1f}"
        f"{turn.counts.get('postgres commits', 0.0):>11.1f}{total(turn.counts, 's3'):>7.1f}"
        f"{turn.cpu.get('APIs', 0.0):>7.0%}{turn.busy:>7.0%}"
    )
