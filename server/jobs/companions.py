"""Which waiting jobs are made together with the first in line, and how long it waits for them.

Nobody is overtaken: those that are taken stand directly behind the first, and each owner pays for
its own as if they were made alone. What is faster was measured by the engine when it started.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from server.jobs.job import Job
from wan_tpu.pipeline.alike import alike, can_be_together, samples_for, step_kind
from wan_tpu.request import VideoRequest

FASTER = 0.9
"""Of a step's seconds alone, what a video's share of a step together may take at most: less gain
than that is within what a measurement of a few steps errs by, and the first is done later."""


class Gains:
    """What making together brings: a step's seconds by kind and size of the batch."""

    def __init__(self, measured: Sequence[Mapping[str, Any]]):
        """Takes what the engine measured, as `Engine.describe` has it."""
        self._seconds = {
            tuple(each["kind"]): {int(n): float(s) for n, s in each["seconds"].items()}
            for each in measured
        }

    def __str__(self) -> str:
        told = []
        for kind, seconds in self._seconds.items():
            steps = ", ".join(f"{n}: {1000 * s:.4g} ms" for n, s in seconds.items())
            told.append(f"{kind[0]}x{kind[1]}, {kind[2]} frames ({steps})")
        return "; ".join(told)

    def most(self, request: VideoRequest, available: int, *, delay_seconds: float) -> int:
        """How many of such requests are best made together; 1 for none, or where nothing is known.

        Args:
            request: complete.
            available: that there are.
            delay_seconds: how much longer the steps of the first may take.
        """
        seconds = self._seconds.get(step_kind(request), {})
        alone = seconds.get(1)
        for count in range(available, 1, -1):
            step = seconds.get(samples_for(count))
            if alone is None or step is None:
                continue
            is_faster = step <= FASTER * alone * count
            if is_faster and (step - alone) * request.num_steps <= delay_seconds:
                return count
        return 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is to be made now.

    Attributes:
        jobs: the first in line, and those that are made with it.
        may_wait: whether it would be faster with more, and one that came would stand behind them.
    """

    jobs: list[Job]
    may_wait: bool


def choose(line: Sequence[Job], gains: Gains, *, most: int, delay_seconds: float) -> Choice:
    """Decides what is made now.

    Args:
        line: the jobs that wait, next one first; not empty.
        gains: of the engine that runs.
        most: jobs that may be made together.
        delay_seconds: how much longer the first may take for the others' sake.
    """
    first = line[0]
    if most == 1 or not _is_sociable(first):
        return Choice(jobs=[first], may_wait=False)
    wanted = gains.most(first.request, most, delay_seconds=delay_seconds)
    group = [first]
    kind = alike(first.request)
    for job in line[1:wanted]:
        if not _is_sociable(job) or alike(job.request) != kind:
            break
        group.append(job)
    is_whole_line = len(group) == len(line)
    count = gains.most(first.request, len(group), delay_seconds=delay_seconds)
    return Choice(jobs=group[:count], may_wait=is_whole_line and len(group) < wanted)


def _is_sociable(job: Job) -> bool:
    """Whether a job may be made with others: one that was started before may be what ended it."""
    return job.attempts == 0 and job.extended is None and can_be_together(job.request)
