"""Progress of a training on stderr: a bar on a terminal, elsewhere a line every half minute."""

import sys
import time

from tqdm import tqdm

from wan_tpu.training.metrics import STOPPED, Ended, Line, Sampled, Saved, Stage, Started, Step

BAR = "{desc:<9}{percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} {elapsed}{postfix}"

REDRAW_SECONDS = 0.1
"""Of the bar: a terminal far away is slower than a small model."""

QUIET_SECONDS = 30.0
"""Between lines of a log; the first step has one, and the last."""


def describe(line: Step) -> str:
    """Steps in words: `loss 0.123, 1.25 s a step, 26.2k tokens/s, MFU 35 %, 0.4 h left`."""
    loss = "no number" if line.loss is None else f"{line.loss:.4g}"
    parts = [
        f"loss {loss}",
        f"{line.seconds:.3g} s a step",
        f"{_thousands(line.tokens_per_second)} tokens/s",
        *([] if line.mfu is None else [f"MFU {100 * line.mfu:.0f} %"]),
        f"{hours_left(line):.1f} h left",
    ]
    return ", ".join(parts)


def hours_left(line: Step) -> float:
    """Of the steps that are not done, at the pace of this line."""
    return max(0, line.steps - line.step) * line.seconds / 3600


def _plain(value: object) -> str:
    """A setting; names of a list side by side."""
    return "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _thousands(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number / 1000:.3g}k"


class TrainingProgress:
    """Shows a training's lines as they come; a context manager, which closes the bar."""

    def __init__(self, *, shown: bool = True):
        self._shown = shown
        self._is_terminal = sys.stderr.isatty()
        self._begun = time.monotonic()
        self._said = -QUIET_SECONDS
        self._bar: tqdm | None = None

    def __enter__(self) -> "TrainingProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def show(self, line: Line) -> None:
        """Moves the bar, or says a line."""
        if not self._shown:
            return
        match line:
            case Started():
                begins = f"training, {line.steps} steps"
                goes_on = f"training goes on after step {line.step} of {line.steps}"
                chosen = [f"{name} {_plain(value)}" for name, value in line.settings.items()]
                self._say(", ".join([goes_on if line.step else begins, *chosen]))
            case Stage():
                self._say(line.name)
            case Step():
                self._step(line)
            case Saved():
                self._say(f"checkpoint of step {line.step}")
            case Sampled():
                self._say(f"samples of step {line.step}: {', '.join(line.files)}")
            case Ended():
                self._close()
                if line.reason == STOPPED:  # an error is said by whoever catches it
                    self._say(f"{line.reason} after step {line.step}")

    def _step(self, line: Step) -> None:
        now = time.monotonic()
        if self._is_terminal:
            if self._bar is None:
                self._bar = tqdm(
                    total=line.steps, initial=line.step, desc="training", unit="step",
                    bar_format=BAR, dynamic_ncols=True,
                )  # fmt: skip
            self._bar.n = line.step
            if now - self._said >= REDRAW_SECONDS or line.step >= line.steps:
                self._said = now
                self._bar.set_postfix_str(describe(line))
            return
        if now - self._said >= QUIET_SECONDS or line.step >= line.steps:
            self._said = now
            self._say(f"step {line.step} of {line.steps}, {describe(line)}")

    def _say(self, words: str) -> None:
        if self._is_terminal:
            tqdm.write(f"wan-tpu: {words}", file=sys.stderr)
            return
        sys.stderr.write(f"[{time.monotonic() - self._begun:6.1f} s] {words}\n")
        sys.stderr.flush()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
