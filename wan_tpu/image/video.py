"""A clip's bytes as RGB frames at a wanted rate: MP4, MOV, WebM, Matroska, by FFmpeg's libraries.

Frames are taken by their time, whatever their rate; they are turned and given square pixels as
the file says; sound is passed over. What a file may cost is bounded before and while it is
decoded. No JAX; PyAV is loaded by the first clip.
"""

import contextlib
import dataclasses
import io
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from wan_tpu.errors import MediaError
from wan_tpu.image.bounds import MAX_VIDEO_PIXELS, check_pixels
from wan_tpu.image.clip_colours import ToRgb
from wan_tpu.image.clip_file import check_clip_file
from wan_tpu.image.fit import cover
from wan_tpu.image.orientation import orientation_of, swaps_sides, turn

if TYPE_CHECKING:
    import av.container
    import av.video.frame
    import av.video.stream

MAX_SECONDS = 600
"""Of a clip. A video is made of some of its seconds; more is a mistake, or a file that lies."""

MAX_FRAMES = 100_000
"""Of a clip: ten minutes at more than 160 frames per second."""

MAX_DECODED_PIXELS = 1 << 35
"""Of all frames that are decoded for one video: 4000 frames of 4K, a minute or two."""

MAX_RESULT_BYTES = 4 << 30
"""Of the frames that one video takes from a clip."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """What a clip is, as it is seen.

    Attributes:
        width: pixels, turned and with square pixels.
        height: likewise.
        num_frames: that the file has.
        duration: seconds from the first frame to the end of the last.
    """

    width: int
    height: int
    num_frames: int
    duration: Fraction

    @property
    def fps(self) -> float:
        """Frames per second, on average where their rate varies."""
        return float(self.num_frames / self.duration)

    def frames_at(self, fps: float | Fraction) -> int:
        """How many frames `read_video` takes from it at a rate, at least one."""
        return max(math.ceil(self.duration * Fraction(fps)), 1)


def video_info(data: bytes) -> VideoInfo:
    """What a clip is; decodes its first frame alone.

    Args:
        data: the file.

    Raises:
        MediaError: it is no clip, has no video, is damaged, or too large, narrow or long.
    """
    num_frames, duration = _measure(data)
    with _opened(data) as (container, stream):
        for frame in container.decode(stream):
            width, height = _seen_size(frame, stream)
            return VideoInfo(width=width, height=height, num_frames=num_frames, duration=duration)
    raise MediaError("the clip has no frame that can be decoded")


def read_video(
    data: bytes, fps: float | Fraction, max_frames: int, *, size: tuple[int, int] | None = None
) -> np.ndarray:
    """A clip's frames at a rate, from its beginning.

    The frame of each moment is the one nearest in time: frames are left out or repeated, none is
    mixed of two. HDR becomes what a screen of BT.709 shows; what is transparent shows white.

    Args:
        data: the file.
        fps: frames per second that are wanted.
        max_frames: how many at most; a longer clip's rest is left.
        size: width and height that each frame is made to cover, by `wan_tpu.image.fit.cover`; the
            clip's own when not given. Saves memory: only frames of this size are kept.

    Returns:
        `[frames, height, width, 3]`, uint8, RGB; `VideoInfo.frames_at(fps)` frames, or
        `max_frames` if that is less.

    Raises:
        MediaError: as `video_info`, or a later frame is damaged.
    """
    assert max_frames >= 1, max_frames
    info = video_info(data)
    num_frames = min(info.frames_at(fps), max_frames)
    width, height = size or (info.width, info.height)
    if num_frames * width * height * 3 > MAX_RESULT_BYTES:
        raise MediaError(
            f"{num_frames} frames of {width}x{height} pixels need more than {MAX_RESULT_BYTES} "
            "bytes: take fewer, or make the clip smaller"
        )
    found = np.empty((num_frames, height, width, 3), np.uint8)
    taken = 0
    with _opened(data) as (container, stream):
        to_rgb = ToRgb()
        for frame, until in _with_ends(_timed(container, stream)):
            # A moment belongs to this frame until halfway to the next.
            end = num_frames if until is None else math.floor(until * Fraction(fps)) + 1
            end = min(end, num_frames)
            if end > taken:
                _seen_size(frame, stream)
                stored = to_rgb(frame, _square(frame, stream))
                pixels = np.ascontiguousarray(turn(stored, _orientation(frame)))
                found[taken:end] = cover(pixels, width, height)
                taken = end
            if taken == num_frames:
                return found
    raise MediaError("the clip has no frame that can be decoded")


def _measure(data: bytes) -> tuple[int, Fraction]:
    """Number of frames and seconds of the video, from its packets: nothing is decoded."""
    num_frames, first, end, last = 0, None, Fraction(0), Fraction(0)
    with _opened(data) as (container, stream):
        size = stream.codec_context.width, stream.codec_context.height
        if 0 in size:
            raise MediaError(
                "the clip is damaged, of a kind that is not known, or its frames have more than "
                f"{MAX_VIDEO_PIXELS} pixels"
            )
        _check_pixels(*size)
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise MediaError("the clip is damaged: its file ends too early")
            time = packet.dts if packet.pts is None else packet.pts
            if not packet.size or packet.is_discard or time is None:
                continue
            num_frames += 1
            _check_number(num_frames)
            begin = time * packet.time_base
            first = begin if first is None else min(first, begin)
            last = max(last, begin)
            end = max(end, begin + (packet.duration or 0) * packet.time_base)
        rate = stream.average_rate
    if first is None:
        raise MediaError("the clip has no frames")
    if end <= last:  # the file does not say how long the last one is seen
        spacing = (last - first) / (num_frames - 1) if num_frames > 1 else 0
        end = last + (spacing or (1 / rate if rate else Fraction(1, 25)))
    if end - first > MAX_SECONDS:
        raise MediaError(
            f"the clip has {float(end - first):.1f} seconds; at most {MAX_SECONDS} are taken"
        )
    return num_frames, end - first


def _timed(
    container: "av.container.InputContainer", stream: "av.video.stream.VideoStream"
) -> Iterator[tuple["av.video.frame.VideoFrame", Fraction]]:
    """Frames in the order they are seen in, with their seconds since the first."""
    first = last = None
    decoded_pixels = 0
    for frame in container.decode(stream):
        decoded_pixels += frame.width * frame.height
        if decoded_pixels > MAX_DECODED_PIXELS:
            raise MediaError(
                f"the clip has too many frames of {frame.width}x{frame.height} pixels in the "
                "seconds that are needed: make it smaller or lower its rate"
            )
        if frame.pts is None or frame.time_base is None:
            continue
        time = frame.pts * Fraction(frame.time_base)
        first = time if first is None else first
        if last is None or time > last:  # a broken file may go back in time
            yield frame, time - first
            last = time


def _with_ends(
    frames: Iterator[tuple["av.video.frame.VideoFrame", Fraction]],
) -> Iterator[tuple["av.video.frame.VideoFrame", Fraction | None]]:
    """Frames, with the last moment that is nearest to each; None for the last frame."""
    shown = None
    for frame, time in frames:
        if shown is not None:
            yield shown[0], (shown[1] + time) / 2
        shown = frame, time
    if shown is not None:
        yield shown[0], None


@contextlib.contextmanager
def _opened(
    data: bytes,
) -> Iterator[tuple["av.container.InputContainer", "av.video.stream.VideoStream"]]:
    """The file with its video stream; FFmpeg's errors inside become one `MediaError`."""
    import av

    # FFmpeg must not guess: some formats are lists of other files, which it would open.
    reader = check_clip_file(data)
    options = {"max_pixels": str(MAX_VIDEO_PIXELS)}  # decoders look into the file when it is opened
    try:
        with av.open(
            io.BytesIO(data), "r", format=reader, options=options, metadata_errors="replace"
        ) as container:
            stream = _video_stream(container)
            stream.codec_context.options = options
            yield container, stream
    except av.FFmpegError as error:
        why = error.strerror or type(error).__name__
        raise MediaError(f"the clip is damaged, or of a kind that is not known: {why}") from error


def _video_stream(container: "av.container.InputContainer") -> "av.video.stream.VideoStream":
    """The video; a picture that is attached to a piece of music is none."""
    from av.stream import Disposition

    streams = [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not stream.disposition & Disposition.attached_pic
    ]
    if not streams:
        kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
        raise MediaError(f"the clip has no video that can be decoded, only {', '.join(kinds)}")
    best = container.streams.best("video")
    return next((stream for stream in streams if stream is best), streams[0])


def _check_pixels(width: int, height: int) -> None:
    check_pixels(width, height, what="clip", max_pixels=MAX_VIDEO_PIXELS)


def _check_number(num_frames: int) -> None:
    if num_frames > MAX_FRAMES:
        raise MediaError(f"the clip has more than {MAX_FRAMES} frames")


def _square(frame: "av.video.frame.VideoFrame", stream: "av.video.stream.VideoStream") -> int:
    """Width in square pixels."""
    shape = stream.sample_aspect_ratio
    return round(frame.width * shape) if shape and shape > 0 else frame.width


def _seen_size(
    frame: "av.video.frame.VideoFrame", stream: "av.video.stream.VideoStream"
) -> tuple[int, int]:
    """Width and height with square pixels, turned.

    Raises:
        MediaError: too large or too narrow.
    """
    width, height = _square(frame, stream), frame.height
    if swaps_sides(_orientation(frame)):
        width, height = height, width
    _check_pixels(width, height)
    return width, height


def _orientation(frame: "av.video.frame.VideoFrame") -> int:
    data = frame.side_data.get("DISPLAYMATRIX")
    return 1 if data is None else orientation_of(np.frombuffer(data, np.int32).reshape(3, 3))
