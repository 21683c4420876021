"""Frames that lie decoded in NumPy's .npz files, read one after the other.

A clip of 81 frames in 832x480 is 97 MB so; no more of it is held than is wanted.
"""

import contextlib
import dataclasses
import pathlib
import zipfile
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np
from numpy.lib import format as npy_format

from wan_tpu.errors import MediaError
from wan_tpu.image.bounds import MAX_VIDEO_PIXELS, check_pixels

FRAMES_KEYS = ("frames", "video", "clip", "pixels", "images", "arr_0")
CAPTION_KEYS = ("caption", "prompt", "text", "cap")
"""Names of arrays, the first that is there."""

_FILE_ERRORS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    EOFError,
    ValueError,
    KeyError,
    SyntaxError,
)
"""What NumPy and `zipfile` raise of damaged files, `OSError` aside."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StoredInfo:
    """What a file of frames holds.

    Attributes:
        width: pixels.
        height: likewise.
        num_frames: as they lie there.
        key: name of the array.
        channels_first: whether it is `[frames, 3, height, width]`.
    """

    width: int
    height: int
    num_frames: int
    key: str
    channels_first: bool


def stored_info(path: pathlib.Path) -> StoredInfo:
    """Reads the head of the array.

    Raises:
        MediaError: it is no such file, or holds no frames; says what it holds.
        OSError: it cannot be read.
    """
    with _array(path) as (_, info):
        return info


def stored_caption(path: pathlib.Path) -> str | None:
    """The text beside the frames; None where there is none, or the file cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in CAPTION_KEYS:
                if key in arrays.files and arrays[key].size == 1 and arrays[key].dtype.kind == "U":
                    return str(arrays[key].item()).strip()
    except (OSError, *_FILE_ERRORS):
        return None  # whoever reads the frames says it
    return None


def read_stored(path: pathlib.Path, indices: Sequence[int]) -> Iterator[np.ndarray]:
    """Some frames.

    Args:
        path: of the file.
        indices: of the frames, each at least the one before.

    Yields:
        `[height, width, 3]`, uint8, RGB, one for each index.

    Raises:
        MediaError: as `stored_info`, or it ends too early.
        OSError: it cannot be read.
    """
    with _array(path) as (file, info):
        frame_bytes = info.width * info.height * 3
        shape = (
            (3, info.height, info.width) if info.channels_first else (info.height, info.width, 3)
        )
        held, frame = -1, np.empty(shape, np.uint8)
        for index in indices:
            while held < index:
                data = file.read(frame_bytes)
                if len(data) < frame_bytes:
                    raise MediaError(
                        f"the frames are damaged: the file ends too early, at frame {held + 1} of "
                        f"{info.num_frames}"
                    )
                held += 1
            frame = np.frombuffer(data, np.uint8).reshape(shape)
            yield frame.transpose(1, 2, 0) if info.channels_first else frame


@contextlib.contextmanager
def _array(path: pathlib.Path) -> Iterator[tuple[IO[bytes], StoredInfo]]:
    """The bytes of the array of frames, behind its head; errors inside become one."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            key = next((key for key in FRAMES_KEYS if key in names), None)
            if key is None:
                raise MediaError(
                    f"the file has no frames: one of {', '.join(FRAMES_KEYS)} is looked for, and "
                    f"it has {', '.join(names) or 'nothing'}"
                )
            with archive.open(f"{key}.npy") as file:
                yield file, _head(file, key)
    except (MediaError, OSError):
        raise
    except zipfile.BadZipFile as error:
        raise MediaError(f"the frames are damaged, or no .npz file: {error}") from None
    except _FILE_ERRORS as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise MediaError(f"the frames are damaged: {why}") from None


def _head(file: IO[bytes], key: str) -> StoredInfo:
    version = npy_format.read_magic(file)
    read = (
        npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    )
    shape, is_fortran, dtype = read(file)
    array = f"{key}, {dtype} {list(shape)},"
    if dtype != np.uint8 or len(shape) != 4 or is_fortran:
        order = " in Fortran's order" if is_fortran else ""
        raise MediaError(
            f"{array} is{order} not what is read: uint8, [frames, height, width, 3], 0 to 255, in "
            "C's order"
        )
    channels_first = shape[3] != 3 and shape[1] == 3
    if shape[3] != 3 and not channels_first:
        raise MediaError(f"{array} has no three colours: [frames, height, width, 3] is read")
    num_frames = shape[0]
    height, width = shape[2:] if channels_first else shape[1:3]
    if not num_frames:
        raise MediaError(f"{array} has no frames")
    check_pixels(width, height, what="clip", max_pixels=MAX_VIDEO_PIXELS)
    return StoredInfo(
        width=width, height=height, num_frames=num_frames, key=key, channels_first=channels_first
    )
