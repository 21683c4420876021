"""A clip as RGB frames at a wanted rate: MP4, MOV, WebM, Matroska, by FFmpeg's libraries.

Frames are taken by their time, whatever their rate; they are turned and given square pixels as
the file says; sound is passed over. What a file may cost is bounded before and while it is
decoded. No JAX; PyAV is loaded by the first clip.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from wan_tpu.errors import MediaError
from wan_tpu.image.clip_colours import ToRgb
from wan_tpu.image.clip_reader import (
    UPLOADS,
    ClipBounds,
    ClipSource,
    measure,
    opened,
    seek,
    seen_pixels,
    seen_size,
    timed,
    with_ends,
)

if TYPE_CHECKING:
    import av.video.frame
    import av.video.stream

SEEK_SECONDS = 1
"""Before the wanted moment, where a keyframe is looked for: files count in the order of decoding,
which runs ahead of the order in which frames are seen by some of them."""


_Frames = Iterator[tuple["av.video.frame.VideoFrame", Fraction]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What a clip is, as it is seen.

    Attributes:
        width: pixels, turned and with square pixels.
        height: likewise.
        num_frames: that the file has.
        duration: seconds from the first frame to the end of the last.
        keyframes: seconds from the first frame: where decoding can begin, and where encoders mark a
            new scene.
    """

    width: int
    height: int
    num_frames: int
    duration: Fraction
    keyframes: tuple[Fraction, ...] = dataclasses.field(default=(), compare=False, repr=False)

    @property
    def fps(self) -> float:
        """Frames per second, on average where their rate varies."""
        return float(self.num_frames / self.duration)

    def frames_at(self, fps: float | Fraction, start: Fraction = Fraction(0)) -> int:
        """How many frames `read_video` takes from it at a rate, at least one.

        Args:
            fps: frames per second.
            start: seconds from the first frame, at which it begins.
        """
        return max(math.ceil((self.duration - start) * Fraction(fps)), 1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A clip that was looked at: of what is known, several parts can be read.

    Attributes:
        source: bytes or a file, which is opened anew for each part.
        bounds: of what is taken.
        info: what it is.
        first: seconds that the file gives the first frame that is seen.
    """

    source: ClipSource
    bounds: ClipBounds
    info: VideoInfo
    first: Fraction

    def read(
        self,
        fps: float | Fraction,
        max_frames: int,
        *,
        size: tuple[int, int] | None = None,
        start: Fraction = Fraction(0),
    ) -> np.ndarray:
        """As `read_video`."""
        assert max_frames >= 1, max_frames
        assert start >= 0, start
        info = self.info
        if start >= info.duration:
            raise MediaError(
                f"the clip has {float(info.duration):.3f} seconds, and frames from "
                f"{float(start):.3f} on are wanted"
            )
        num_frames = min(info.frames_at(fps, start), max_frames)
        width, height = size or (info.width, info.height)
        if num_frames * width * height * 3 > self.bounds.max_result_bytes:
            raise MediaError(
                f"{num_frames} frames of {width}x{height} pixels need more than "
                f"{self.bounds.max_result_bytes} bytes: take fewer, or make the clip smaller"
            )
        found = np.empty((num_frames, height, width, 3), np.uint8)
        begin, taken = self.first + start, 0
        with self._frames_around(start) as (frames, stream):
            to_rgb = ToRgb()
            for frame, until in with_ends(frames):
                # A moment belongs to this frame until halfway to the next.
                end = num_frames
                if until is not None:
                    end = min(math.floor((until - begin) * Fraction(fps)) + 1, num_frames)
                if end > taken:
                    found[taken:end] = seen_pixels(frame, stream, to_rgb, (width, height))
                    taken = end
                if taken == num_frames:
                    return found
        raise MediaError("the clip has no frame that can be decoded")

    @contextlib.contextmanager
    def _frames_around(
        self, start: Fraction
    ) -> Iterator[tuple[_Frames, "av.video.stream.VideoStream"]]:
        """Frames from one at or before a moment on: from a keyframe, or from the beginning."""
        begin = self.first + start
        if start > SEEK_SECONDS:
            with opened(self.source, self.bounds) as (container, stream):
                if seek(container, stream, begin - SEEK_SECONDS):
                    frames = timed(container, stream, self.bounds)
                    earliest = next(frames, None)
                    if earliest is not None and earliest[1] <= begin:
                        yield itertools.chain([earliest], frames), stream
                        return
        with opened(self.source, self.bounds) as (container, stream):
            yield timed(container, stream, self.bounds), stream


def open_clip(source: ClipSource, *, bounds: ClipBounds | None = None) -> Clip:
    """Looks at a clip; reads all of its packets and decodes its first frame.

    Args:
        source: the clip.
        bounds: of what is taken; `UPLOADS` when not given.

    Raises:
        MediaError: it is no clip, has no video, is damaged, or too large, narrow or long.
        OSError: a file cannot be read.
    """
    bounds = bounds or UPLOADS
    packets = measure(source, bounds)
    with opened(source, bounds) as (container, stream):
        for frame, time in timed(container, stream, bounds):
            width, height = seen_size(frame, stream)
            info = VideoInfo(
                width=width,
                height=height,
                num_frames=packets.num_frames,
                duration=packets.duration,
                keyframes=packets.keyframes,
            )
            return Clip(source=source, bounds=bounds, info=info, first=time)
    raise MediaError("the clip has no frame that can be decoded")


def video_info(source: ClipSource, *, bounds: ClipBounds | None = None) -> VideoInfo:
    """What a clip is; arguments and errors as of `open_clip`."""
    return open_clip(source, bounds=bounds).info


def read_video(
    source: ClipSource,
    fps: float | Fraction,
    max_frames: int,
    *,
    size: tuple[int, int] | None = None,
    start: Fraction = Fraction(0),
    bounds: ClipBounds | None = None,
) -> np.ndarray:
    """A clip's frames at a rate, from its beginning or a later moment.

    The frame of each moment is the one nearest in time: frames are left out or repeated, none is
    mixed of two. HDR becomes what a screen of BT.709 shows; what is transparent shows white. A
    later moment is decoded from the keyframe before it, with the frames that decoding all gives.

    Args:
        source: the clip.
        fps: frames per second that are wanted.
        max_frames: how many at most; a longer clip's rest is left.
        size: width and height that each frame is made to cover, by `wan_tpu.image.fit.cover`; the
            clip's own when not given. Saves memory: only frames of this size are kept.
        start: seconds from the first frame, at which the first moment is.
        bounds: of what is taken; `UPLOADS` when not given.

    Returns:
        `[frames, height, width, 3]`, uint8, RGB; `VideoInfo.frames_at(fps, start)` frames, or
        `max_frames` if that is less.

    Raises:
        MediaError: as `open_clip`, or a later frame is damaged, or it ends before `start`.
        OSError: a file cannot be read.
    """
    return open_clip(source, bounds=bounds).read(fps, max_frames, size=size, start=start)
