"""All of a clip decoded once, to say what it is and whether it is whole. No JAX."""

import dataclasses
import hashlib
import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from wan_tpu.errors import MediaError
from wan_tpu.image.clip_colours import is_hdr
from wan_tpu.image.clip_reader import (
    ClipBounds,
    PacketTimes,
    measure,
    opened,
    orientation,
    seen_size,
    timed,
)

if TYPE_CHECKING:
    import pathlib

    import av.container
    import av.video.frame
    import av.video.stream

THUMBNAIL_SIDE = 32
"""Pixels: enough to tell a picture from a surface."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What the frames of a file look like, by thumbnails.

    Attributes:
        first: digest of the first frame.
        all: digest of all frames.
        contrast: the widest range of a colour's values within a frame, 0 to 255.
        change: the widest range of a value over the frames, 0 to 255.
        mean: value of all frames and colours, 0 to 255.
    """

    first: str
    all: str
    contrast: int
    change: int
    mean: float


class Looking:
    """Makes a `Look` of thumbnails, of which it holds two."""

    def __init__(self) -> None:
        self._first = ""
        self._digest = hashlib.sha256()
        self._contrast, self._sum, self._count = 0, 0.0, 0
        self._lowest: np.ndarray | None = None
        self._highest: np.ndarray | None = None

    def add(self, thumbnail: np.ndarray) -> None:
        """Takes the next frame, `[height, width, 3]`, uint8, all of one size."""
        self._digest.update(thumbnail.tobytes())
        within = thumbnail.max((0, 1)).astype(int) - thumbnail.min((0, 1))
        self._contrast = max(self._contrast, int(within.max()))
        self._sum += float(thumbnail.mean())
        self._count += 1
        if self._lowest is None or self._highest is None:
            self._first = self._digest.hexdigest()
            self._lowest, self._highest = thumbnail.copy(), thumbnail.copy()
        np.minimum(self._lowest, thumbnail, out=self._lowest)
        np.maximum(self._highest, thumbnail, out=self._highest)

    def end(self) -> Look:
        """Of all that were added, at least one."""
        assert self._lowest is not None
        assert self._highest is not None
        return Look(
            first=self._first,
            all=self._digest.hexdigest(),
            contrast=self._contrast,
            change=int((self._highest - self._lowest).max()),
            mean=self._sum / self._count,
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ClipDetails:
    """What a clip is, all of it decoded.

    Attributes:
        width: pixels, as it is seen.
        height: likewise.
        num_frames: that the file has.
        duration: seconds from the first frame to the end of the last.
        keyframes: seconds from the first frame.
        codec: FFmpeg's name.
        bits: of a sample.
        is_hdr: whether it is HDR10 or HLG.
        orientation: Exif's number; 1 is as stored.
        pixel_shape: width of a stored pixel to its height.
        is_interlaced: whether a frame's lines are of two moments.
        shortest: seconds between two frames one after the other.
        longest: likewise.
        decoded: frames that the decoder gave.
        corrupt: of these, how many it says are damaged.
        damage: how far it came and why no further; None where it came to the end.
        missing: seconds that the file says it has and that are not there; 0 where it says nothing.
        look: None where no frame could be decoded.
    """

    width: int
    height: int
    num_frames: int
    duration: Fraction
    keyframes: tuple[Fraction, ...]
    codec: str
    bits: int
    is_hdr: bool
    orientation: int
    pixel_shape: Fraction
    is_interlaced: bool
    shortest: Fraction
    longest: Fraction
    decoded: int
    corrupt: int
    damage: str | None
    missing: Fraction
    look: Look


def examine_clip(path: "pathlib.Path", bounds: ClipBounds) -> ClipDetails:
    """Decodes all of a clip.

    Args:
        path: of the file.
        bounds: of what is taken.

    Raises:
        MediaError: it is no clip, has no video, or no frame can be decoded.
        OSError: it cannot be read.
    """
    import av

    measured = measure(path, bounds)
    looking, thumbnails = Looking(), _Thumbnails()
    first: dict[str, Any] = {}
    decoded, corrupt, damage, last = 0, 0, None, Fraction(0)
    with opened(path, bounds) as (container, stream):
        codec, shape = stream.codec_context.name, stream.sample_aspect_ratio
        declared = _declared(container, stream)
        try:
            for frame, time in timed(container, stream, bounds):
                if not first:
                    first = _of_frame(frame)
                    first["width"], first["height"] = seen_size(frame, stream)
                looking.add(thumbnails(frame))
                decoded, corrupt = decoded + 1, corrupt + frame.is_corrupt
                last = time
        except av.FFmpegError as error:
            if not first:
                raise
            why = error.strerror or type(error).__name__
            damage = f"{decoded} can be decoded, to {float(last):.2f} s: {why}"
    if not first:
        raise MediaError("the clip has no frame that can be decoded")
    return ClipDetails(
        **first,
        num_frames=measured.num_frames,
        duration=measured.duration,
        keyframes=measured.keyframes,
        shortest=measured.shortest,
        longest=measured.longest,
        codec=codec,
        pixel_shape=Fraction(shape) if shape and shape > 0 else Fraction(1),
        decoded=decoded,
        corrupt=corrupt,
        damage=damage,
        missing=_missing(declared, measured),
        look=looking.end(),
    )


def _declared(
    container: "av.container.InputContainer", stream: "av.video.stream.VideoStream"
) -> Fraction | None:
    """Seconds of video by the file's head, or at which it ends; None where it does not say it."""
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    said = re.fullmatch(r"(\d+):(\d+):(\d+(\.\d+)?)", stream.metadata.get("DURATION", ""))
    if said is not None:  # Matroska's
        return 3600 * int(said[1]) + 60 * int(said[2]) + Fraction(said[3])
    if len(container.streams) == 1 and container.duration:  # of the longest stream, sound too
        return Fraction(container.duration, 1_000_000)
    return None


def _missing(declared: Fraction | None, packets: PacketTimes) -> Fraction:
    """How much less there is than the file says; some count from 0, and some from its begin."""
    there = max(packets.duration, packets.first + packets.duration)
    return Fraction(0) if declared is None else max(declared - there, Fraction(0))


def _of_frame(frame: "av.video.frame.VideoFrame") -> dict[str, Any]:
    return {
        "bits": max(component.bits for component in frame.format.components),
        "is_hdr": is_hdr(frame),
        "orientation": orientation(frame),
        "is_interlaced": bool(frame.interlaced_frame),
    }


class _Thumbnails:
    """Frames of one clip in a small square, whatever their size and colours."""

    def __init__(self) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        self._scaler = VideoReformatter()
        self._how = Interpolation.AREA

    def __call__(self, frame: "av.video.frame.VideoFrame") -> np.ndarray:
        """`[side, side, 3]`, uint8."""
        side = THUMBNAIL_SIDE
        return self._scaler.reformat(
            frame, width=side, height=side, format="rgb24", interpolation=self._how, threads=1
        ).to_ndarray()
