"""What a listed file has, and a window of it as frames of the wanted size. NumPy, no JAX.

Frames come to their size as a request's pictures do: turned, square pixels, covering the size,
their middle cut out (`wan_tpu.image.fit.cover`). Nothing is made larger: `buckets` sees to that.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from jaxtyping import UInt8

from wan_tpu.dataset.entry import Entry, Kind
from wan_tpu.dataset.sampling import Window, frames_at
from wan_tpu.dataset.stored_frames import read_stored, stored_info
from wan_tpu.errors import MediaError
from wan_tpu.geometry import Geometry
from wan_tpu.image.clip_reader import OWN_FILES
from wan_tpu.image.fit import cover
from wan_tpu.image.picture import picture_size, read_picture
from wan_tpu.image.video import Clip, open_clip

Frames = UInt8[np.ndarray, "frames height width 3"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a file has.

    Attributes:
        entry: the file.
        width: pixels, as it is seen.
        height: likewise.
        duration: seconds; None for a picture.
        keyframes: of a clip, seconds from its first frame.
    """

    entry: Entry
    width: int
    height: int
    duration: Fraction | None
    keyframes: tuple[Fraction, ...] = ()

    def frames_at(self, fps: float | Fraction) -> int:
        """How many frames it has at a rate: 1 for a picture."""
        return 1 if self.duration is None else frames_at(self.duration, fps)


def measure(entry: Entry, *, fps: float | Fraction) -> Measured:
    """What a file has, by its head and its packets; at most one frame is decoded.

    Args:
        entry: the file.
        fps: the model's frame rate: stored frames that do not say theirs are taken to be at it.

    Raises:
        MediaError: it cannot be read; begins with its name.
    """
    with naming(entry):
        if entry.kind is Kind.PICTURE:
            width, height = picture_size(entry.path.read_bytes())
            return Measured(entry=entry, width=width, height=height, duration=None)
        if entry.kind is Kind.FRAMES:
            stored = stored_info(entry.path)
            rate = stored_rate(entry, fps)
            return Measured(
                entry=entry,
                width=stored.width,
                height=stored.height,
                duration=stored.num_frames / rate,
            )
        info = _clip_of(entry.path).info
        return Measured(
            entry=entry,
            width=info.width,
            height=info.height,
            duration=info.duration,
            keyframes=info.keyframes,
        )


def read_window(
    entry: Entry, window: Window, geometry: Geometry, *, fps: float | Fraction
) -> Frames:
    """The frames of a window.

    Args:
        entry: the file.
        window: of it; a picture's begins at 0 and has one frame.
        geometry: of the frames; `window.num_frames` of them.
        fps: the model's frame rate.

    Returns:
        `[frames, height, width, 3]`, uint8, RGB: of each moment the frame that is nearest in time.

    Raises:
        MediaError: it cannot be read, or has fewer frames; begins with its name.
    """
    assert window.num_frames == geometry.num_frames, (window, geometry)
    size = geometry.width, geometry.height
    with naming(entry):
        if entry.kind is Kind.CLIP:
            clip = _clip_of(entry.path)
            frames = clip.read(fps, window.num_frames, size=size, start=window.start)
        elif entry.kind is Kind.PICTURE:
            frames = cover(read_picture(entry.path.read_bytes()), *size)[None]
        else:
            frames = _stored_window(entry, window, geometry, fps)
        if len(frames) < window.num_frames:
            raise MediaError(
                f"it has {len(frames)} frames from {float(window.start):.3f} seconds on, and "
                f"{window.num_frames} are wanted"
            )
        return frames


def stored_rate(entry: Entry, fps: float | Fraction) -> Fraction:
    """Frames per second of stored frames: as their line says, else the model's."""
    return Fraction(fps if entry.fps is None else entry.fps).limit_denominator(100_000)


@contextlib.contextmanager
def naming(entry: Entry) -> Iterator[None]:
    """Says of which file an error is."""
    try:
        yield
    except MediaError as error:
        raise MediaError(f"{entry.name}: {error}") from error
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise MediaError(f"{entry.name}: it cannot be read: {why}") from error


def _clip_of(path: pathlib.Path) -> Clip:
    """A clip, looked at once for all of its windows: that reads the whole file."""
    state = path.stat()
    return _looked_at(path, state.st_mtime_ns, state.st_size, state.st_ino)


@functools.lru_cache(maxsize=1024)
def _looked_at(path: pathlib.Path, *state: int) -> Clip:
    """The clip that a file is in a state."""
    return open_clip(path, bounds=OWN_FILES)


def _stored_window(
    entry: Entry, window: Window, geometry: Geometry, fps: float | Fraction
) -> Frames:
    has, rate = stored_info(entry.path).num_frames, stored_rate(entry, fps)
    times = [window.start + index / Fraction(fps) for index in range(window.num_frames)]
    # A moment halfway between two frames has the earlier one, as in a clip.
    indices = [
        min(math.ceil(time * rate - Fraction(1, 2)), has - 1) for time in times if time < has / rate
    ]
    found = np.empty((len(indices), geometry.height, geometry.width, 3), np.uint8)
    for place, frame in enumerate(read_stored(entry.path, indices)):
        found[place] = cover(frame, geometry.width, geometry.height)
    return found
