"""Writes a video of one frame as a picture, to a file that is complete or absent."""

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from wan_tpu.errors import InputError, OutputError
from wan_tpu.pipeline.whole_file import aside_of, publish, reporting

_JPEG = {"format": "JPEG", "quality": 95, "subsampling": "4:4:4"}
_FORMATS: dict[str, dict[str, Any]] = {
    ".png": {"format": "PNG"},
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": {"format": "WebP", "quality": 95, "method": 6},
}
"""What Pillow is told, by suffix. A PNG loses nothing; the others look like it."""

_LARGEST = {"JPEG": 65_500, "WebP": 16_383}
"""Pixels of a side that a format has room for."""

PICTURE_SUFFIXES = tuple(_FORMATS)


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Whether a file of this name holds a picture, not a video."""
    return Path(path).suffix.lower() in PICTURE_SUFFIXES


class PictureWriter:
    """Writes one frame, in the manner of `VideoWriter`: all of it, or nothing.

    An existing file is replaced when the new one is complete, not before.
    """

    def __init__(self, path: str | os.PathLike[str], *, width: int, height: int) -> None:
        """Checks the arguments; nothing is written before the `with` block ends.

        Args:
            path: the file, of one of `PICTURE_SUFFIXES`; where it is a link, what it points to is
                replaced.
            width: pixels. height: likewise.

        Raises:
            InputError: the suffix, or a size that the format has no room for.
        """
        self._path = Path(path)
        if not is_picture(path):
            raise InputError(
                f"a picture must end in {', '.join(PICTURE_SUFFIXES)}, got {os.fspath(path)!r}"
            )
        self._format = _FORMATS[self._path.suffix.lower()]
        largest = _LARGEST.get(self._format["format"])
        if largest is not None and max(width, height) > largest:
            raise InputError(
                f"a {self._path.suffix} has at most {largest} pixels a side, got {width}x{height}; "
                "use .png"
            )
        self._width, self._height = width, height
        self._target = Path(os.path.realpath(self._path))
        self._aside = aside_of(self._target)
        self._frame: np.ndarray | None = None

    def __enter__(self) -> Self:
        with reporting(self._path):
            self._aside.touch()
        return self

    def write(self, frames: np.ndarray) -> None:
        """Takes the frame.

        Args:
            frames: `[n, height, width, 3]`, uint8, RGB; n may be 0, and is 1 once.
        """
        assert frames.dtype == np.uint8, frames.dtype
        assert frames.shape[1:] == (self._height, self._width, 3), frames.shape
        assert len(frames) + (self._frame is not None) <= 1, "a picture has one frame"
        if len(frames):
            self._frame = np.array(frames[0])

    def abort(self) -> None:
        """Gives the file up, from any thread: for a process that is about to leave for good."""
        self._aside.unlink(missing_ok=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                with reporting(self._path):
                    if self._frame is None:
                        raise OutputError(f"cannot write {self._path}: there is no frame")
                    with self._aside.open("wb") as file:
                        Image.fromarray(self._frame).save(file, **self._format)
                    publish(self._aside, self._target)
        finally:
            self._aside.unlink(missing_ok=True)
