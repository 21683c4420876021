"""Pictures and clips as files, drawn here: smooth, coloured, different for each seed."""

import io
import pathlib
import tempfile

import numpy as np
from PIL import Image

from wan_tpu.pipeline.video_file import VideoWriter


def draw(width: int, height: int, seed: int = 0) -> np.ndarray:
    """`[height, width, 3]`, uint8: waves of another direction and phase in every channel."""
    numbers = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width] / 16.0
    waves = [
        np.sin(numbers.uniform(0.3, 2) * rows + numbers.uniform(-2, 2) * columns + phase)
        for phase in numbers.uniform(0, 6, 3)
    ]
    return (127.5 + 110 * np.stack(waves, axis=-1)).astype(np.uint8)


def make_png(width: int, height: int, seed: int = 0) -> bytes:
    """A drawn picture's file."""
    file = io.BytesIO()
    Image.fromarray(draw(width, height, seed)).save(file, "PNG")
    return file.getvalue()


def make_clip(width: int = 80, height: int = 48, *, frames: int = 9, fps: int = 16) -> bytes:
    """A clip of a drawn picture that moves by a pixel a frame."""
    picture = draw(width, height)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "clip.mp4"
        with VideoWriter(path, fps=fps, width=width, height=height) as writer:
            writer.write(np.stack([np.roll(picture, step, axis=1) for step in range(frames)]))
        return path.read_bytes()
