"""How long a job is nobody's when its slice is told to end, or ends without a word."""

import signal
import statistics
import sys
from collections.abc import Mapping, Sequence

from benchmarks.fleet.running import MeasuredFleet

STEPS = 300
"""Of the job: it outlasts every handover."""

WAYS = {"SIGTERM": signal.SIGTERM, "kill -9": signal.SIGKILL}


def measure(fleet: MeasuredFleet, repeats: int) -> dict[str, list[float]]:
    """Seconds from the signal until another slice has taken the job up, by the way."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for way, number in WAYS.items():
        for _ in range(repeats):
            found[way].append(_hand_over(fleet, number))
            sys.stderr.write(f"{way}: {found[way][-1]:.2f} s\n")
    return found


def _hand_over(fleet: MeasuredFleet, number: signal.Signals) -> float:
    fleet.have(2)
    (job_id,) = fleet.post(1, STEPS)
    fleet.wait(lambda: _is_under_way(fleet, job_id))
    ((_, name),) = fleet.taken_up(job_id)
    at = fleet.end(name, number)
    fleet.wait(lambda: len(fleet.taken_up(job_id)) == 2)
    _, (again, _) = fleet.taken_up(job_id)
    fleet.fleet.ask(f"/v1/videos/{job_id}/cancel", {})
    return again - at


def _is_under_way(fleet: MeasuredFleet, job_id: str) -> bool:
    """Some steps are done: it is in the engine, and Temporal has heard of it."""
    return (fleet.fleet.ask(f"/v1/videos/{job_id}")["step"] or 0) > 5


def report(found: Mapping[str, Sequence[float]]) -> list[str]:
    """A line for each way."""
    return [
        "handover: seconds from the signal until another slice has the job",
        *(
            f"{way:<9}median {statistics.median(seconds):.2f}, {min(seconds):.2f} to "
            f"{max(seconds):.2f} of {len(seconds)}"
            for way, seconds in found.items()
        ),
        "",
    ]
