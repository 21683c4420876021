"""What a running generation tells its caller, and how the caller stops it."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


class Watch:
    """Measures the stages of one generation, reports them, and stops it when asked.

    Attributes:
        seconds: by stage, compiling apart from running.
    """

    def __init__(
        self,
        on_progress: Callable[[Progress], None] | None = None,
        should_cancel: Callable[[], bool] | None = None,
    ):
        self._on_progress = on_progress or (lambda _: None)
        self._should_cancel = should_cancel or (lambda: False)
        self.seconds: dict[str, float] = {}
        self._within = 0.0  # seconds of stages within the one that runs

    def check(self) -> None:
        """Raises `Cancelled` if the caller asked to stop."""
        if self._should_cancel():
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
            self._on_progress(Progress(stage=name, done=done, total=total, seconds=seconds))
            if done < total:
                self.check()

        report(0)
        yield report
        seconds = time.perf_counter() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds - self._within
        self._within = around + seconds
