"""The clip that a video is to continue: its last frame, its length, and the size of both."""

import dataclasses
import io
from collections.abc import Mapping

import numpy as np
from PIL import Image

from server.errors import ApiError
from server.http.bodies import Making
from server.http.reference import Reference
from server.http.served_model import ServedModel
from server.jobs.job import Extended
from wan_tpu.errors import MediaError
from wan_tpu.image.video import VideoInfo, read_video, video_info
from wan_tpu.media import Media, check_size, digest_of

MAX_CLIP_BYTES = 1 << 30
"""Of the frames of a clip, decoded as they are, in the memory of the server."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """What a clip says of the video that continues it.

    Attributes:
        body: the client's, with the size.
        image: the last frame, without loss.
        clip: the clip.
        extended: its digest and length.
    """

    body: Making
    image: Reference
    clip: Reference
    extended: Extended

    def media(self, references: Mapping[str, Reference]) -> Media:
        """Everything that the job needs: the pictures of its request, and the clip."""
        every = {each.digest: each.data for each in (*references.values(), self.clip)}
        return Media(every)


def read_extension(model: ServedModel, body: Making, clip: Reference) -> Extension:
    """Reads a clip as far as it can be continued; slow.

    Args:
        model: that continues it.
        body: of the client, with what it inherits.
        clip: MP4.

    Raises:
        ApiError: it cannot be decoded, or is too long.
    """
    fps = body.fps or model.description.defaults.fps
    try:
        info = video_info(clip.data)
        _check_length(model, info, fps, clip.field)
        frames = read_video(clip.data, fps, info.frames_at(fps))
    except MediaError as error:
        raise ApiError(400, "invalid_value", str(error), param=clip.field) from None
    height, width = frames.shape[1:3]
    if body.size is None and model.makes(width, height):
        body = body.model_copy(update={"size": f"{width}x{height}"})
    picture = _png(frames[-1])
    extension = Extension(
        body=body,
        image=Reference(field=clip.field, role="image", data=picture, digest=digest_of(picture)),
        clip=clip,
        extended=Extended(video=clip.digest, num_frames=len(frames)),
    )
    try:
        check_size((len(clip.data), len(picture)))
    except MediaError as error:
        raise ApiError(400, "too_long", str(error), param=clip.field) from None
    return extension


def _check_length(model: ServedModel, info: VideoInfo, fps: int, field: str) -> None:
    """Refuses more frames than a job of the model's default size and steps may have.

    Raises:
        ApiError: there are more.
    """
    defaults = model.description.defaults
    work = defaults.width * defaults.height * defaults.num_inference_steps
    most = min(model.max_work // work, MAX_CLIP_BYTES // (3 * info.width * info.height))
    if info.frames_at(fps) > most:
        message = (
            f"the video has {info.frames_at(fps)} frames at {fps} fps, and one that is continued "
            f"at most {most}"
        )
        raise ApiError(400, "too_long", message, param=field)


def _png(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()
