"""How far a job is and how long it still takes, from what earlier jobs took."""

import dataclasses
import math
from typing import Any

from server.engine.messages import Progress
from server.jobs.job import Job
from wan_tpu.request import VideoRequest

WEIGHT_OF_NEW = 0.3
"""Of the latest job in the running average: a few jobs settle it, one odd job does not move it."""

MOST_CACHES = 32
"""Settings of step caches that are told apart, those seen last."""

DENOISE_FROM, DECODE_FROM, ALMOST = 2, 90, 99
"""Percent at which denoising and decoding begin, and the most before the files are in place."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Where a running job is.

    Attributes:
        stage: `encode`, `image`, `text`, `denoise`, `decode`, or `compile` followed by a program's
            name.
        step: units of the stage that are done, of `steps`.
        percent: of the whole job; never falls.
        seconds_left: None where nothing is known yet.
    """

    stage: str
    step: int
    steps: int
    percent: int
    seconds_left: float | None


class Durations:
    """Seconds that each stage takes per unit of work, learned from finished jobs.

    A step cache leaves out a share of the work that its settings do not tell: what it takes is
    learned by itself.
    """

    def __init__(self) -> None:
        # Seconds per pixel, frame and evaluation, by step cache; "" for none.
        self._denoise: dict[str, float] = {}
        self._decode: float | None = None  # seconds per pixel and frame

    def observe(
        self, request: VideoRequest, seconds: dict[str, Any], made_together: int = 1
    ) -> None:
        """Learns from a finished job's seconds by stage.

        Args:
            request: of the job.
            seconds: by stage; those of the steps are of all jobs that were made with it.
            made_together: how many those were.
        """
        cache = request.step_cache or ""
        before = self._denoise.pop(cache, None)
        work = evaluated(request) * max(made_together, 1)
        rate = _average(before, seconds.get("denoise"), work)
        if rate is not None:
            self._denoise[cache] = rate  # behind the others: seen last
        if len(self._denoise) > MOST_CACHES:
            del self._denoise[next(each for each in self._denoise if each)]
        self._decode = _average(self._decode, seconds.get("decode"), volume_of(request))

    def total(self, request: VideoRequest) -> float | None:
        """Seconds that a whole job takes."""
        # Of a cache that is new here, no more than without one.
        rate = self._denoise.get(request.step_cache or "", self._denoise.get(""))
        if rate is None or self._decode is None:
            return None
        return rate * evaluated(request) + self._decode * volume_of(request)

    def running(self, job: Job, progress: Progress, before: Running | None) -> Running:
        """Where a job is that reported `progress`."""
        percent = _percent(progress)
        return Running(
            stage=progress.stage,
            step=progress.done,
            steps=progress.total,
            percent=max(percent, before.percent if before is not None else 0),
            seconds_left=self._left(job.request, progress),
        )

    def _left(self, request: VideoRequest, progress: Progress) -> float | None:
        each = progress.seconds / progress.done if progress.done else None
        remaining = progress.total - progress.done
        decode = None if self._decode is None else self._decode * volume_of(request)
        match progress.stage:
            case "denoise" if each is not None:
                return each * remaining + (decode or 0.0)
            case "decode":
                return decode if each is None else each * remaining
            case "compile vae" | "compile decode":
                return decode
            case _:
                return self.total(request)


def volume_of(request: VideoRequest) -> int:
    """Pixels of all frames of a complete request."""
    assert request.width is not None
    assert request.height is not None
    assert request.num_frames is not None
    return request.width * request.height * request.num_frames


def work_of(request: VideoRequest) -> int:
    """Pixels x frames x steps of a complete request: those that run."""
    return volume_of(request) * request.num_steps


def evaluated(request: VideoRequest) -> int:
    """Pixels x frames x evaluations of the model: guidance takes two of them a step."""
    is_guided = request.guidance_scale is None or request.uses_guidance
    return work_of(request) * (2 if is_guided else 1)


def _average(before: float | None, seconds: object, work: int) -> float | None:
    # What was stored may be another release's, or a hand's.
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds) or work <= 0:
        return before
    new = seconds / work
    return new if before is None else before + WEIGHT_OF_NEW * (new - before)


def _percent(progress: Progress) -> int:
    done = progress.done / progress.total if progress.total else 1.0
    match progress.stage:
        case "denoise":
            return DENOISE_FROM + int((DECODE_FROM - DENOISE_FROM) * done)
        case "decode":
            return DECODE_FROM + int((ALMOST - DECODE_FROM) * done)
        case _:
            return 0
