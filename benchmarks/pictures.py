"""Files for the pictures and clips that a measured request names: drawn here, smooth, the same each
time."""

import dataclasses
import io
import pathlib
import tempfile

import numpy as np
from PIL import Image

from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.media import Media, digest_of
from wan_tpu.pipeline.video_file import VideoWriter
from wan_tpu.request import VideoRequest


def with_files(request: VideoRequest, description: ModelDescription) -> tuple[VideoRequest, Media]:
    """The request with a file, of the video's size, for every role that it names.

    Args:
        request: its digests are of no bytes.
        description: of the model; its defaults are what the request leaves open.
    """
    full = request.resolved(description.defaults)
    assert full.width is not None
    assert full.height is not None
    files = {
        role: _clip(full) if role == "video" else _png(_draw(full.width, full.height, seed))
        for seed, role in enumerate(request.media)
    }
    digests = {role: digest_of(data) for role, data in files.items()}
    return dataclasses.replace(request, **digests), Media.of(*files.values())


def _draw(width: int, height: int, seed: int) -> np.ndarray:
    """`[height, width, 3]`, uint8: waves of another phase in every channel."""
    rows, columns = np.mgrid[0:height, 0:width] / 16
    waves = [np.sin(rows + (1 + seed) * columns / 2 + phase) for phase in (0, 2, 4)]
    return (127.5 + 110 * np.stack(waves, axis=-1)).astype(np.uint8)


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def _clip(request: VideoRequest) -> bytes:
    """A drawn picture that moves by a pixel a frame."""
    assert request.width is not None
    assert request.height is not None
    assert request.num_frames is not None
    assert request.fps is not None
    size = {"width": request.width, "height": request.height}
    picture = _draw(**size, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "clip.mp4"
        with VideoWriter(path, fps=request.fps, **size) as writer:
            for step in range(request.num_frames):
                writer.write(np.roll(picture, step, axis=1)[None])
        return path.read_bytes()
