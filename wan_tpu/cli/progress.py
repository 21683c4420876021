"""Progress on a terminal: one bar per stage, with seconds per step."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from wan_tpu.pipeline.progress import Progress

UNITS = {"text": "prompt", "denoise": "step", "decode": "frame"}
BAR = (
    "{desc:<18}{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} "
    "{elapsed}<{remaining} {rate_inv_fmt}"
)


class ProgressBars:
    """Shows reports as they come; a stage that ends leaves its line."""

    def __init__(self, *, shown: bool = True) -> None:
        self._shown = shown
        self._bar: tqdm | None = None
        self._stage = ""

    def __enter__(self) -> "ProgressBars":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def show(self, progress: Progress) -> None:
        """Moves the bar of the stage, opening it when the stage is new."""
        if progress.stage != self._stage or self._bar is None:
            self._open(progress.stage, progress.total)
        assert self._bar is not None
        self._bar.update(progress.done - self._bar.n)
        if progress.done >= progress.total:
            self._close()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of one unit that reports nothing itself."""
        self._open(name, 1)
        assert self._bar is not None
        yield
        self._bar.update(1)
        self._close()

    def _open(self, stage: str, total: int) -> None:
        self._close()
        self._stage = stage
        unit = next((unit for name, unit in UNITS.items() if name == stage), "program")
        self._bar = tqdm(
            total=total,
            desc=stage,
            unit=unit,
            bar_format=BAR,
            dynamic_ncols=True,
            disable=not self._shown,
        )

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, ""
