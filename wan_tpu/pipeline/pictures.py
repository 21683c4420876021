"""The pictures and clips of a request: measured, decoded, fitted to the video. No JAX.

A picture covers the video's size and is cropped around its middle; nothing is stretched. One that
has the size already is untouched.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from fractions import Fraction

import numpy as np
from jaxtyping import Float32, UInt8

from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.errors import MediaError
from wan_tpu.geometry import Compression, Geometry
from wan_tpu.image.fit import cover, describe_cover, size_for
from wan_tpu.image.picture import picture_size, read_picture
from wan_tpu.image.video import VideoInfo, read_video, video_info
from wan_tpu.media import Media
from wan_tpu.request import VideoRequest

FIRST, LAST, VIDEO = "image", "last_image", "video"
"""Of `wan_tpu.media.ROLES`."""

Frames = UInt8[np.ndarray, "frames height width 3"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """What a request names in one role, decoded.

    Attributes:
        given: width and height in pixels, as it is seen.
        whole: `[height, width, 3]`, all of a picture; None for a clip, which is large.
        fitted: `[frames, height, width, 3]` in the size of the video.
    """

    given: tuple[int, int]
    whole: UInt8[np.ndarray, "height width 3"] | None = None
    fitted: Frames

    @property
    def fit(self) -> str:
        """How it came to the size of the video."""
        return describe_cover(self.given, (self.fitted.shape[2], self.fitted.shape[1]))


Pictures = Mapping[str, Picture]
"""By role."""


def sized(
    description: ModelDescription, request: VideoRequest, media: Media, compression: Compression
) -> VideoRequest:
    """A request with the size and the length that its pictures give it, where it says none.

    The first picture decides the size, by the model's rule at its default area. A clip decides
    the length: the most frames that it has at the video's frame rate and the model makes.

    Args:
        description: of the model.
        request: what to make.
        media: exactly what it names.
        compression: of the model.

    Raises:
        MediaError: bytes that are no picture or clip, or a clip that is shorter than the request.
    """
    clip = None
    if request.video is not None:
        with _naming(VIDEO):
            clip = video_info(media[request.video])
    if request.width is None and request.height is None:
        request = _with_size(description, request, media, compression, clip)
    if clip is None:
        return request
    defaults = description.defaults
    step, fps = compression.temporal, request.fps or defaults.fps
    found = clip.frames_at(Fraction(fps))
    if request.num_frames is None:
        most = min(found, defaults.num_frames)
        return dataclasses.replace(request, num_frames=_allowed(most, step))
    if found < request.num_frames:
        raise MediaError(
            f"the video has {found} frames at {fps} frames per second and {request.num_frames} "
            f"were asked for; at most {_allowed(found, step)} can be made of it"
        )
    return request


def decode(request: VideoRequest, media: Media, geometry: Geometry) -> dict[str, Picture]:
    """Everything that a complete request names.

    Args:
        request: whose frame rate and length a clip is read at.
        media: exactly what it names.
        geometry: sizes of the video.

    Raises:
        MediaError: bytes that are no picture or clip.
    """
    pictures = {}
    for role, digest in request.media.items():
        with _naming(role):
            pictures[role] = _decode(role, media[digest], request, geometry)
    return pictures


def _decode(role: str, data: bytes, request: VideoRequest, geometry: Geometry) -> Picture:
    size = geometry.width, geometry.height
    if role == VIDEO:
        assert request.fps is not None
        info = video_info(data)
        fitted = read_video(data, request.fps, geometry.num_frames, size=size)
        return Picture(given=(info.width, info.height), fitted=fitted)
    whole = read_picture(data)
    given = whole.shape[1], whole.shape[0]
    return Picture(given=given, whole=whole, fitted=cover(whole, *size)[None])


@contextlib.contextmanager
def _naming(role: str) -> Iterator[None]:
    """Says of which of a request's pictures an error is."""
    try:
        yield
    except MediaError as error:
        raise MediaError(f"{role.replace('_', ' ')}: {error}") from error


def to_floats(frames: Frames) -> Float32[np.ndarray, "frames height width 3"]:
    """Bytes to [-1, 1], float32, in the operations of diffusers' image processor."""
    return 2.0 * (frames.astype(np.float32) / 255.0) - 1.0


def _with_size(
    description: ModelDescription,
    request: VideoRequest,
    media: Media,
    compression: Compression,
    clip: VideoInfo | None,
) -> VideoRequest:
    if clip is None:
        role, digest = next(iter(request.media.items()))
        with _naming(role):
            given = picture_size(media[digest])
    else:
        given = clip.width, clip.height
    width, height = size_for(
        description.kind.size_rule,
        *given,
        area=description.defaults.width * description.defaults.height,
        multiples=(compression.width_multiple, compression.height_multiple),
    )
    return dataclasses.replace(request, width=width, height=height)


def _allowed(num_frames: int, step: int) -> int:
    """The most frames, at least one, that the model can make and are at most so many."""
    return (num_frames - 1) // step * step + 1
