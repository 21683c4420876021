"""Progress on stderr: a bar per stage on a terminal, elsewhere a line as each stage begins."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from wan_tpu.pipeline.progress import Progress

UNITS = {
    "text": "prompt",
    "denoise": "step",
    "decode": "frame",
    "check": "file",
    "compare": "frame",
    "shards": "shard",
}
BAR = (
    "{desc:<18}{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} "
    "{elapsed}<{remaining} {rate_inv_fmt}"
)

QUIET_SECONDS = 60.0
"""A stage in a log says how far it is no more often than this."""


def say(words: str) -> None:
    """A line on stderr that leaves progress bars whole."""
    tqdm.write(f"wan-tpu: {words}", file=sys.stderr)


class StageLines:
    """What has begun, a line each, with the seconds since the start: for commands' logs."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def say(self, what: str) -> None:
        """Writes one line."""
        sys.stderr.write(f"[{time.monotonic() - self._started:6.1f} s] {what}\n")
        sys.stderr.flush()


class ProgressBars:
    """Shows reports as they come; a stage that ends leaves its line."""

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        self._lines = None if sys.stderr.isatty() else StageLines()
        self._bar: tqdm | None = None
        self._stage = ""
        self._said = 0.0

    def __enter__(self) -> "ProgressBars":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def show(self, progress: Progress) -> None:
        """Moves the bar of the stage, opening it when the stage is new."""
        if not self._shown:
            return
        if progress.stage != self._stage:
            self._open(progress.stage, progress.total)
        elif self._lines is not None and time.monotonic() - self._said >= QUIET_SECONDS:
            self._say(f"{progress.stage}, {progress.done} of {progress.total}")
        if self._bar is not None:
            self._bar.update(progress.done - self._bar.n)
        if progress.done >= progress.total:
            self._close()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of one unit that reports nothing itself."""
        self.show(Progress(stage=name, done=0, total=1, seconds=0.0))
        yield
        self.show(Progress(stage=name, done=1, total=1, seconds=0.0))

    def _open(self, stage: str, total: int) -> None:
        self._close()
        self._stage = stage
        unit = UNITS.get(stage, "")
        if self._lines is not None:
            self._say(f"{stage}, {total} {unit}{'s' * (total > 1)}" if unit else stage)
            return
        self._bar = tqdm(
            total=total, desc=stage, unit=unit or "program", bar_format=BAR, dynamic_ncols=True
        )

    def _say(self, what: str) -> None:
        assert self._lines is not None
        self._said = time.monotonic()
        self._lines.say(what)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ""
