"""The frames of a clip that a job continues, before those that are made."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from server.files.uploads import UploadLost, read_uploads
from wan_tpu.errors import MediaError
from wan_tpu.image.video import read_video
from wan_tpu.request import VideoRequest


@dataclasses.dataclass(slots=True)
class AfterFirst:
    """Passes frames on to a writer, without the first, which the clip has as its last."""

    write: Callable[[np.ndarray], None]
    is_begun: bool = False

    def __call__(self, frames: np.ndarray) -> None:
        """Takes frames `[n, height, width, 3]`, uint8."""
        if len(frames):
            self.write(frames if self.is_begun else frames[1:])
            self.is_begun = True


def frames_of_clip(
    uploads: pathlib.Path, digest: str, num_frames: int, request: VideoRequest
) -> Iterator[np.ndarray]:
    """The frames of a clip that is continued, `[1, height, width, 3]` each, uint8, in the size.

    Args:
        uploads: folder where it lies.
        digest: of the clip.
        num_frames: that it had when the job was accepted.
        request: complete; what is made of its last frame.

    Raises:
        UploadLost: it is gone, or not what it was.
    """
    assert request.fps is not None
    assert request.width is not None
    assert request.height is not None
    data = read_uploads(uploads, {"beginning": digest})[digest]
    try:
        size = request.width, request.height
        frames = read_video(data, request.fps, num_frames, size=size)
    except MediaError as error:
        raise UploadLost(f"the beginning of this video cannot be read: {error}") from error
    if len(frames) != num_frames:
        raise UploadLost(
            f"the beginning of this video has {len(frames)} frames, and had {num_frames}"
        )
    yield from np.array_split(frames, num_frames)
