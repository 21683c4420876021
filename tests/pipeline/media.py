"""Drawn pictures and clips as files."""

import io
import pathlib
import tempfile

import numpy as np
from PIL import Image

from wan_tpu.pipeline.drawn import draw
from wan_tpu.pipeline.video_file import VideoWriter


def make_png(width: int, height: int, seed: int = 0) -> bytes:
    """A drawn picture's file."""
    file = io.BytesIO()
    Image.fromarray(draw(width, height, seed=seed)).save(file, "PNG")
    return file.getvalue()


def make_clip(width: int = 80, height: int = 48, *, frames: int = 9, fps: int = 16) -> bytes:
    """A clip of a drawn picture that moves by a pixel a frame."""
    picture = draw(width, height, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "clip.mp4"
        with VideoWriter(path, fps=fps, width=width, height=height) as writer:
            writer.write(np.stack([np.roll(picture, step, axis=1) for step in range(frames)]))
        return path.read_bytes()
