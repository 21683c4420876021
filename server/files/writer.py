"""Writes the files of one video while it is decoded: video, thumbnail, spritesheet.

Runs in the engine process. The folder is the job's own and unpublished; `server.files.media` gives
it its place once all three are complete.
"""

import math
import os
import pathlib
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from server.files.media import FILE_NAMES
from wan_tpu.pipeline.video_file import VideoWriter

THUMBNAIL_EDGE = 320
"""Pixels of the longer side, at most."""

SHEET_FRAMES, SHEET_COLUMNS, SHEET_EDGE = 25, 5, 160
"""Frames on a spritesheet at most, in rows of so many, each of so many pixels at most."""


class MediaFiles:
    """Takes frames as they come; on leaving the block without error, all files are written."""

    def __init__(self, folder: pathlib.Path, *, fps: int, width: int, height: int, num_frames: int):
        self._folder = folder
        self._writer = VideoWriter(
            folder / FILE_NAMES["video"], fps=fps, width=width, height=height
        )
        kept = min(num_frames, SHEET_FRAMES)
        self._kept = {round(i * (num_frames - 1) / max(kept - 1, 1)) for i in range(kept)}
        self._middle = num_frames // 2
        self._seen = 0
        self._thumbnail: Image.Image | None = None
        self._cells: list[Image.Image] = []

    @property
    def sheet(self) -> dict[str, Any]:
        """How the spritesheet is laid out, in reading order."""
        frames = len(self._kept)
        columns = min(frames, SHEET_COLUMNS)
        return {"columns": columns, "rows": math.ceil(frames / columns), "frames": frames}

    def write(self, frames: np.ndarray) -> None:
        """Appends frames `[n, height, width, 3]`, uint8."""
        self._writer.write(frames)
        for frame in frames:
            if self._seen in self._kept:
                self._cells.append(_shrunk(frame, SHEET_EDGE))
            if self._seen == self._middle:
                self._thumbnail = _shrunk(frame, THUMBNAIL_EDGE)
            self._seen += 1

    def __enter__(self) -> Self:
        self._writer.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.__exit__(kind, error, traceback)
        if kind is None:
            assert self._thumbnail is not None
            _save(self._thumbnail, self._folder / FILE_NAMES["thumbnail"])
            _save(self._spritesheet(), self._folder / FILE_NAMES["spritesheet"])

    def _spritesheet(self) -> Image.Image:
        width, height = self._cells[0].size
        columns, rows = self.sheet["columns"], self.sheet["rows"]
        sheet = Image.new("RGB", (columns * width, rows * height))
        for index, cell in enumerate(self._cells):
            sheet.paste(cell, (index % columns * width, index // columns * height))
        return sheet


def _shrunk(frame: np.ndarray, edge: int) -> Image.Image:
    image = Image.fromarray(frame)
    image.thumbnail((edge, edge))
    return image


def _save(image: Image.Image, path: pathlib.Path) -> None:
    """Writes an image onto the disk; its suffix says the format."""
    with path.open("wb") as file:
        image.save(file, format="WEBP" if path.suffix == ".webp" else "JPEG", quality=85)
        file.flush()
        os.fsync(file.fileno())
