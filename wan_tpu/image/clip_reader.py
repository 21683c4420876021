"""A clip's file with its video stream, and its frames with their times: what `video` is made of.

What a file may cost is bounded before and while it is decoded. No JAX; PyAV is loaded by the first
clip.
"""

import contextlib
import dataclasses
import io
import itertools
import math
import pathlib
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from wan_tpu.errors import MediaError
from wan_tpu.image.bounds import MAX_VIDEO_PIXELS, check_pixels
from wan_tpu.image.clip_colours import ToRgb
from wan_tpu.image.clip_file import AVI, GIF, check_clip_file
from wan_tpu.image.fit import cover
from wan_tpu.image.orientation import orientation_of, swaps_sides, turn
from wan_tpu.media import CLIP_TYPES

if TYPE_CHECKING:
    import av.container
    import av.packet
    import av.video.frame
    import av.video.stream

ClipSource = bytes | pathlib.Path
"""A clip's bytes, or its file, of which no more is held than is being decoded."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClipBounds:
    """What is taken as a clip, and what reading it may cost.

    Attributes:
        types: of files, as `wan_tpu.image.clip_file.clip_type_of` names them.
        max_seconds: of a clip.
        max_frames: of a clip.
        max_decoded_pixels: of all frames that are decoded for one call.
        max_result_bytes: of the frames that one call gives.
    """

    types: tuple[str, ...] = CLIP_TYPES
    max_seconds: int = 600
    max_frames: int = 100_000
    max_decoded_pixels: int = 1 << 35
    max_result_bytes: int = 4 << 30


UPLOADS = ClipBounds()
"""For what a request names. A video is made of some of a clip's seconds: ten minutes, at more than
160 frames per second, are a mistake or a file that lies. The pixels are 4000 frames of 4K, a minute
or two of work."""

OWN_FILES = ClipBounds(
    types=(*CLIP_TYPES, AVI, GIF),
    max_seconds=6 * 3600,
    max_frames=2_000_000,
    max_decoded_pixels=1 << 44,
)
"""For what somebody learns from: whole films, in more formats."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PacketTimes:
    """What a clip's packets say; nothing is decoded.

    Attributes:
        num_frames: that the file has.
        duration: seconds from the first frame to the end of the last.
        first: seconds that the file gives its first frame.
        keyframes: seconds from the first frame: where decoding can begin.
        shortest: seconds between two frames one after the other; 0 for a single frame.
        longest: likewise.
    """

    num_frames: int
    duration: Fraction
    first: Fraction
    keyframes: tuple[Fraction, ...]
    shortest: Fraction
    longest: Fraction


def measure(source: ClipSource, bounds: ClipBounds) -> PacketTimes:
    """Reads a clip's packets.

    Raises:
        MediaError: it is no clip, has no video, is damaged or too long.
    """
    ticks: list[int] = []
    keyframes: list[int] = []
    end = 0
    with opened(source, bounds) as (container, stream):
        size = stream.codec_context.width, stream.codec_context.height
        if 0 in size:
            raise MediaError(
                "the clip is damaged, of a kind that is not known, or its frames have more than "
                f"{MAX_VIDEO_PIXELS} pixels"
            )
        check_clip_pixels(*size)
        for packet in container.demux(stream):
            if packet.is_corrupt:
                raise MediaError("the clip is damaged: its file ends too early")
            time = packet.dts if packet.pts is None else packet.pts
            if not packet.size or packet.is_discard or time is None:
                continue
            ticks.append(time)
            if len(ticks) > bounds.max_frames:
                raise MediaError(f"the clip has more than {bounds.max_frames} frames")
            if packet.is_keyframe:
                keyframes.append(time)
            end = max(end, time + (packet.duration or 0))
        rate, tick = stream.average_rate, stream.time_base
    if not ticks or not tick:
        raise MediaError("the clip has no frames")
    ticks.sort()
    first, last = ticks[0], ticks[-1]
    seconds = (end - first) * tick
    if end <= last:  # the file does not say how long the last one is seen
        spacing = (last - first) * tick / (len(ticks) - 1) if len(ticks) > 1 else 0
        seconds = (last - first) * tick + (spacing or (1 / rate if rate else Fraction(1, 25)))
    if seconds > bounds.max_seconds:
        raise MediaError(
            f"the clip has {float(seconds):.1f} seconds; at most {bounds.max_seconds} are taken"
        )
    gaps = [after - before for before, after in itertools.pairwise(ticks)] or [0]
    return PacketTimes(
        num_frames=len(ticks),
        duration=seconds,
        first=first * tick,
        keyframes=tuple((time - first) * tick for time in keyframes),
        shortest=min(gaps) * tick,
        longest=max(gaps) * tick,
    )


def timed(
    container: "av.container.InputContainer",
    stream: "av.video.stream.VideoStream",
    bounds: ClipBounds,
) -> Iterator[tuple["av.video.frame.VideoFrame", Fraction]]:
    """Frames in the order they are seen in, with the seconds that the file gives them."""
    last = None
    decoded_pixels = 0
    for frame in container.decode(stream):
        decoded_pixels += frame.width * frame.height
        if decoded_pixels > bounds.max_decoded_pixels:
            raise MediaError(
                f"the clip has too many frames of {frame.width}x{frame.height} pixels in the "
                "seconds that are needed: make it smaller or lower its rate"
            )
        time = _time(frame, container.format.name, last, stream.average_rate)
        if time is None:
            continue
        if last is None or time > last:  # a broken file may go back in time
            yield frame, time
            last = time


def _time(
    frame: "av.video.frame.VideoFrame", reader: str, last: Fraction | None, rate: Fraction | None
) -> Fraction | None:
    """Seconds of a frame; None where the file does not say them."""
    # AVI holds the times of decoding alone; what FFmpeg makes of them goes back and forth.
    ticks = frame.dts if reader == "avi" else frame.pts
    if ticks is not None and frame.time_base is not None:
        return ticks * Fraction(frame.time_base)
    if reader == "avi" and last is not None and rate:  # frames that the decoder still had
        return last + 1 / rate
    return None


def seek(
    container: "av.container.InputContainer", stream: "av.video.stream.VideoStream", time: Fraction
) -> bool:
    """Goes to a keyframe at or before a moment in the file's seconds; not where none can be told.

    An AVI file's frames are known by counting alone, and a GIF's each change what was before.
    """
    import av

    if container.format.name in ("avi", "gif") or not stream.time_base:
        return False
    try:
        container.seek(math.floor(time / stream.time_base), stream=stream)
    except av.FFmpegError:
        return False  # it has no index
    return True


def with_ends(
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
def opened(
    source: ClipSource, bounds: ClipBounds
) -> Iterator[tuple["av.container.InputContainer", "av.video.stream.VideoStream"]]:
    """The file with its video stream; FFmpeg's errors inside become one `MediaError`."""
    import av

    with _file(source) as file:
        # FFmpeg must not guess: some formats are lists of other files, which it would open.
        reader = check_clip_file(file, bounds.types)
        file.seek(0)
        options = {"max_pixels": str(MAX_VIDEO_PIXELS)}  # decoders look in when it is opened
        try:
            with av.open(
                file, "r", format=reader, options=options, metadata_errors="replace"
            ) as container:
                stream = _video_stream(container)
                stream.codec_context.options = options
                yield container, stream
        except av.FFmpegError as error:
            why = error.strerror or type(error).__name__
            raise MediaError(
                f"the clip is damaged, or of a kind that is not known: {why}"
            ) from error


@contextlib.contextmanager
def _file(source: ClipSource) -> Iterator[io.BufferedIOBase]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    with source.open("rb") as file:
        yield file


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


def check_clip_pixels(width: int, height: int) -> None:
    """Refuses frames that are too large or too narrow; `MediaError` says what is taken."""
    check_pixels(width, height, what="clip", max_pixels=MAX_VIDEO_PIXELS)


def _square(frame: "av.video.frame.VideoFrame", stream: "av.video.stream.VideoStream") -> int:
    """Width in square pixels."""
    shape = stream.sample_aspect_ratio
    return round(frame.width * shape) if shape and shape > 0 else frame.width


def seen_size(
    frame: "av.video.frame.VideoFrame", stream: "av.video.stream.VideoStream"
) -> tuple[int, int]:
    """Width and height with square pixels, turned.

    Raises:
        MediaError: too large or too narrow.
    """
    width, height = _square(frame, stream), frame.height
    if swaps_sides(orientation(frame)):
        width, height = height, width
    check_clip_pixels(width, height)
    return width, height


def seen_pixels(
    frame: "av.video.frame.VideoFrame",
    stream: "av.video.stream.VideoStream",
    to_rgb: ToRgb,
    size: tuple[int, int],
) -> np.ndarray:
    """A frame as it is seen, made to cover a size.

    Args:
        frame: decoded.
        stream: that it is of.
        to_rgb: of the clip.
        size: width and height.

    Returns:
        `[height, width, 3]`, uint8, RGB.

    Raises:
        MediaError: it is too large or too narrow; sizes may change within a clip.
    """
    seen_size(frame, stream)
    stored = to_rgb(frame, _square(frame, stream))
    return cover(np.ascontiguousarray(turn(stored, orientation(frame))), *size)


def orientation(frame: "av.video.frame.VideoFrame") -> int:
    """Exif's number of how a frame is turned: 1 is as stored."""
    data = frame.side_data.get("DISPLAYMATRIX")
    return 1 if data is None else orientation_of(np.frombuffer(data, np.int32).reshape(3, 3))
