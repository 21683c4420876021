"""Pictures and clips that are drawn here, for runs that show how a model runs and not what of."""

import io
import pathlib
import tempfile
from collections.abc import Set

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from wan_tpu.geometry import Geometry
from wan_tpu.media import ROLES, Media, digest_of
from wan_tpu.pipeline.pictures import VIDEO
from wan_tpu.pipeline.video_file import VideoWriter


def draw_media(roles: Set[str], geometry: Geometry, fps: int) -> tuple[dict[str, str], Media]:
    """Drawn pictures for a request, different for each role, in the size of its video.

    Args:
        roles: of `wan_tpu.media.ROLES`.
        geometry: sizes of the video.
        fps: of a clip.

    Returns:
        Digests by role, and the bytes.
    """
    contents = {}
    for number, role in enumerate(ROLES):
        picture = draw(geometry.width, geometry.height, seed=number)
        if role in roles:
            is_clip = role == VIDEO
            contents[role] = _clip(picture, geometry, fps) if is_clip else _png(picture)
    digests = {role: digest_of(data) for role, data in contents.items()}
    return digests, Media.of(*contents.values())


def draw(width: int, height: int, *, seed: int) -> UInt8[np.ndarray, "height width 3"]:
    """Waves of another direction, length and phase in every channel."""
    numbers = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width] / 16.0
    waves = [
        np.sin(numbers.uniform(0.3, 2) * rows + numbers.uniform(-2, 2) * columns + phase)
        for phase in numbers.uniform(0, 6, 3)
    ]
    return (127.5 + 110 * np.stack(waves, axis=-1)).astype(np.uint8)


def _png(picture: UInt8[np.ndarray, "height width 3"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def _clip(picture: UInt8[np.ndarray, "height width 3"], geometry: Geometry, fps: int) -> bytes:
    """The picture as it moves by a pixel a frame."""
    frames = [np.roll(picture, step, axis=1) for step in range(geometry.num_frames)]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "clip.mp4"
        size = {"width": geometry.width, "height": geometry.height}
        with VideoWriter(path, fps=fps, **size) as writer:
            writer.write(np.stack(frames))
        return path.read_bytes()
