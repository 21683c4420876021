"""What a running generation tells its caller, and how the caller stops it."""

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from wan_tpu.errors import Cancelled

STAGES = ("image", "text", "encode", "denoise", "decode")
"""What progress is reported for, in order."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One report.

    Attributes:
        stage: one of `STAGES`, or `compile` followed by a program's name.
        done: units of the stage that are finished: pictures, prompts, frames, steps, frames.
        total: units of the stage.
        seconds: since the stage began.
    """

    stage: str
    done: int
    total: int
    seconds: float


Outcome = dict[str, Any] | Exception
"""Of a member: its video's metadata, or why there is none."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """What whoever asks for several videos is called with; a member is its place among them.

    Attributes:
        on_progress: with the members that have got on, and how far.
        on_end: with a member and its outcome, as soon as that is known; once for each.
        on_frames: with a member and frames `[n, height, width, 3]`, uint8, in order; None where
            nobody wants them.
        cancelled: asked at every step for the members to be stopped; others may come later.
    """

    on_progress: Callable[[Sequence[int], Progress], None] = lambda members, progress: None
    on_end: Callable[[int, Outcome], None] = lambda member, outcome: None
    on_frames: Callable[[int, np.ndarray], None] | None = None
    cancelled: Callable[[], Collection[int]] = lambda: ()


class Watch:
    """Measures the stages of one generation, reports them, and stops it when asked.

    Attributes:
        note: what its caller is told by. is_stopped: asks its caller whether to stop.
        seconds: by stage, compiling apart from running.
    """

    def __init__(
        self,
        on_progress: Callable[[Progress], None] | None = None,
        should_cancel: Callable[[], bool] | None = None,
    ):
        self.note = on_progress or (lambda _: None)
        self.is_stopped = should_cancel or (lambda: False)
        self.seconds: dict[str, float] = {}
        self._within = 0.0  # seconds of stages within the one that runs

    def check(self) -> None:
        """Raises `Cancelled` if the caller asked to stop."""
        if self.is_stopped():
            raise Cancelled("the generation was cancelled")

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Times a stage; the block calls what it gets with the units done so far.

        What stages within it take is theirs alone.

        Checks for cancellation at the start and after every report.
        """
        self.check()
        around, self._within = self._within, 0.0
        start = time.perf_counter()

        def report(done: int) -> None:
            seconds = time.perf_counter() - start
            self.note(Progress(stage=name, done=done, total=total, seconds=seconds))
            if done < total:
                self.check()

        report(0)
        yield report
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds - self._within
        self._within = around + seconds
