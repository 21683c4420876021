"""Which windows of a clip are learnt: where each begins, in seconds.

A window is read by time at the model's frame rate: a clip is never squeezed into the frames that
are wanted, and never taken for being at that rate.
"""

import dataclasses
import math
import random
from collections.abc import Sequence
from fractions import Fraction

from wan_tpu.errors import InputError, UnknownNameError

SAMPLINGS = ("head", "middle", "uniform", "random", "keyframe", "chunks")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of a clip.

    Attributes:
        start: seconds from the clip's first frame.
        num_frames: at the model's frame rate.
    """

    start: Fraction
    num_frames: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How windows are chosen.

    Attributes:
        method: of `SAMPLINGS`:
            `head`, one from the beginning; `middle`, one around the middle;
            `uniform`, `count` evenly spread from the beginning to the end, one around the middle;
            `random`, `count` drawn;
            `keyframe`, at most `count` that begin at keyframes, where encoders mark a new scene,
            and do not overlap;
            `chunks`, one behind the other, as many as there are, or the first `count`.
        count: windows of a clip, fewer where a short one has fewer different ones; None for
            one, of `keyframe` and `chunks` for all.
        seed: of `random`: the same seed draws the same of a clip, whatever other clips there are.
    """

    method: str = "head"
    count: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in SAMPLINGS:
            raise UnknownNameError("sampling", self.method, SAMPLINGS)
        if self.count is not None and self.count < 1:
            raise InputError(f"the windows of a clip must be at least 1, got {self.count}")
        if self.method in ("head", "middle") and self.count not in (None, 1):
            raise InputError(
                f"sampling {self.method} takes one window of a clip, not {self.count}; uniform, "
                "random, keyframe and chunks take several"
            )


def frames_at(duration: Fraction, fps: float | Fraction) -> int:
    """Frames that a clip has at a rate, as `wan_tpu.image.video.VideoInfo.frames_at`."""
    return max(math.ceil(duration * Fraction(fps)), 1)


def sample_windows(
    sampling: Sampling,
    *,
    name: str,
    duration: Fraction,
    num_frames: int,
    fps: float | Fraction,
    keyframes: Sequence[Fraction] = (),
) -> tuple[Window, ...]:
    """The windows of one clip, in the order of their starts, all different.

    Args:
        sampling: how they are chosen.
        name: of the clip: it is part of what `random` draws by.
        duration: of the clip, seconds.
        num_frames: of each window.
        fps: the model's frame rate.
        keyframes: of the clip, seconds from its first frame, for `keyframe`.

    Returns:
        At least one window if the clip has `num_frames` at that rate, else none.
    """
    rate = Fraction(fps)
    last = frames_at(duration, rate) - num_frames
    if last < 0:
        return ()
    if sampling.method == "keyframe":
        latest = duration - (num_frames - 1) / rate  # not itself: a frame lasts until its end
        starts = _apart([time for time in keyframes if 0 <= time < latest], num_frames / rate)
        starts = starts or [Fraction(0)]
        starts = starts[: sampling.count]
    else:
        starts = [index / rate for index in _starts(sampling, name, last, num_frames)]
    return tuple(Window(start=Fraction(start), num_frames=num_frames) for start in starts)


def _starts(sampling: Sampling, name: str, last: int, num_frames: int) -> list[int]:
    """Numbers of the first frames, of 0 to `last`."""
    count = sampling.count or 1
    match sampling.method:
        case "head":
            return [0]
        case "middle":
            return [last // 2]
        case "chunks":
            return list(range(0, last + 1, num_frames))[: sampling.count]
        case "random":
            draw = random.Random(f"{sampling.seed}:{name}")
            return sorted(draw.sample(range(last + 1), min(count, last + 1)))
    if count == 1:
        return [last // 2]
    # Halves up, where Python's round would take even numbers.
    return sorted({(2 * n * last + count - 1) // (2 * (count - 1)) for n in range(count)})


def _apart(times: Sequence[Fraction], seconds: Fraction) -> list[Fraction]:
    """The first of some times, and then each that is at least so far from the one before."""
    kept: list[Fraction] = []
    for time in sorted(set(times)):
        if not kept or time - kept[-1] >= seconds:
            kept.append(time)
    return kept
