"""Writes a video to a file that is complete or absent. Knows nothing of models or JAX.

`.mp4` is H.264 in yuv420p with BT.709 colours and the index at the front, which every browser
plays from the first bytes on; `.npy` is the plain uint8 array. Both take frames chunk by chunk,
so that the file grows while later frames still decode. Everything is written aside, in the same
folder, and renamed at the end.
"""

import collections
import contextlib
import errno
import os
import signal
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import imageio_ffmpeg
import numpy as np

from wan_tpu.errors import InputError, MissingPackageError, OutputError
from wan_tpu.pipeline.whole_file import aside_of, check_file_path, publish, reporting

SUFFIXES = (".mp4", ".npy")

CRF = 18
"""x264's constant rate factor; 18 is commonly held to be visually lossless."""

_COLOURS = (
    # Without naming the matrix, ffmpeg makes BT.601 of RGB and says nothing of it in the file;
    # players then guess, and reds and greens shift.
    "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int,"
    "format=yuv420p,"
    "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
)
_ENCODE = ("-vf", _COLOURS, "-c:v", "libx264", "-preset", "medium", "-crf", str(CRF))
_CONTAINER = ("-movflags", "+faststart", "-f", "mp4")
_QUIET = ("-hide_banner", "-nostdin", "-loglevel", "error")


def check_output_path(path: str | os.PathLike[str]) -> Path:
    """Finds out, before any work, whether a video can be written to `path`.

    Raises:
        InputError: the suffix is not one of `SUFFIXES`.
        OutputError: the folder is missing or not writable, or something is in the way.
    """
    _check_suffix(path)
    return check_file_path(path)


class VideoWriter:
    """Writes one video; on any exception, Ctrl-C included, nothing is left behind.

        with VideoWriter("fox.mp4", fps=16, width=832, height=480) as writer:
            for frames in chunks:
                writer.write(frames)

    An existing file is replaced when the new one is complete, not before.
    """

    def __init__(self, path: str | os.PathLike[str], *, fps: int, width: int, height: int) -> None:
        """Checks the arguments; nothing is written before the `with` block begins.

        Args:
            path: the file, `.mp4` or `.npy`; where it is a link, what it points to is replaced.
            fps: frames per second; `.npy` does not record it.
            width: pixels, even for `.mp4`. height: likewise.

        Raises:
            InputError: the suffix, or an odd size for `.mp4`.
        """
        self._path = Path(path)
        self._suffix = _check_suffix(path)
        if self._suffix == ".mp4" and (width % 2 or height % 2):
            raise InputError(f"an .mp4 needs even width and height, got {width}x{height}; use .npy")
        self._fps, self._width, self._height = fps, width, height
        self._num_frames = 0
        self._target = Path(os.path.realpath(self._path))
        self._aside = aside_of(self._target)
        self._file: _FrameFile | None = None

    def __enter__(self) -> Self:
        with reporting(self._path):
            if self._suffix == ".mp4":
                self._file = _Mp4File(self._aside, self._fps, self._width, self._height)
            else:
                self._file = _NpyFile(self._aside, self._width, self._height)
        return self

    def write(self, frames: np.ndarray) -> None:
        """Appends frames.

        Args:
            frames: `[n, height, width, 3]`, uint8, RGB; n may be 0.

        Raises:
            OutputError: the disk is full, or ffmpeg failed; with its last words.
        """
        assert self._file is not None, "use the writer in a with block"
        assert frames.dtype == np.uint8, frames.dtype
        assert frames.shape[1:] == (self._height, self._width, 3), frames.shape
        if len(frames):
            with reporting(self._path):
                self._file.write(np.ascontiguousarray(frames))
        self._num_frames += len(frames)

    def abort(self) -> None:
        """Gives the file up, from any thread: for a process that is about to leave for good."""
        if self._file is not None:
            self._file.discard()
        self._aside.unlink(missing_ok=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._file is not None
        try:
            if kind is None:
                with reporting(self._path):
                    if not self._num_frames:
                        raise OutputError(f"cannot write {self._path}: there are no frames")
                    self._file.finish()
                    publish(self._aside, self._target)
        finally:
            self._file.discard()
            self._aside.unlink(missing_ok=True)


def read_frames(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a video back, by the colours its file declares.

    Returns:
        `[frames, height, width, 3]`, uint8, RGB.

    Raises:
        InputError: the file is missing or holds no video.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no video file {path}")
    if path.suffix.lower() == ".npy":
        return np.load(path, allow_pickle=False)
    exact = "scale=flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
    decode = ("-i", f"file:{path}", "-map", "0:v:0", "-fps_mode", "passthrough", "-vf", exact)
    output = ("-pix_fmt", "rgb24", "-f", "image2pipe", "-c:v", "ppm", "-")
    command = [_ffmpeg(), *_QUIET, *decode, *output]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise InputError(f"cannot read {path}: {_last_words(done.stderr.splitlines())}")
    # Each frame is a small text header, "P6\n<width> <height>\n255\n", and the pixels.
    width, height = (int(number) for number in done.stdout.split(b"\n", 2)[1].split())
    size = width * height * 3
    header = done.stdout.index(b"\n255\n") + len(b"\n255\n")
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, header + size)  # [frames, bytes]
    return frames[:, header:].reshape(-1, height, width, 3).copy()


def _check_suffix(path: str | os.PathLike[str]) -> str:
    """The suffix in lower case.

    Raises:
        InputError: it is not one of `SUFFIXES`.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        instead = Path(path).stem or "video"
        raise InputError(
            f"output must end in {' or '.join(SUFFIXES)}, got {os.fspath(path)!r}; write "
            f"{instead}.mp4, of which ffmpeg makes any other format"
        )
    return suffix


class _FrameFile(Protocol):
    """A file under construction."""

    def write(self, frames: np.ndarray) -> None:
        """Appends contiguous frames, at least one."""

    def finish(self) -> None:
        """Completes the file."""

    def discard(self) -> None:
        """Lets go of everything that is still held; after `finish` there is nothing."""


class _NpyFile:
    """NumPy's format, frame by frame.

    The header says how many frames follow, which is known last; NumPy leaves room in it for the
    first dimension to grow, so the header is written twice.
    """

    def __init__(self, path: Path, width: int, height: int) -> None:
        self._file: BinaryIO = path.open("wb")
        self._shape = (height, width, 3)
        self._num_frames = 0
        self._header_bytes = self._write_header()

    def write(self, frames: np.ndarray) -> None:
        self._file.write(frames.data)
        self._num_frames += len(frames)

    def finish(self) -> None:
        self._file.seek(0)
        header_bytes = self._write_header()
        assert header_bytes == self._header_bytes, (header_bytes, self._header_bytes)
        self._file.close()

    def discard(self) -> None:
        with contextlib.suppress(OSError):  # a full disk refuses the buffered rest once more
            self._file.close()

    def _write_header(self) -> int:
        description = np.lib.format.dtype_to_descr(np.dtype(np.uint8))
        shape = (self._num_frames, *self._shape)
        fields = {"descr": description, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, fields)
        return self._file.tell()


class _Mp4File:
    """An ffmpeg process that takes raw frames.

    It runs in a session of its own: a Ctrl-C in the terminal reaches this process only, which then
    decides what becomes of the file.
    """

    def __init__(self, path: Path, fps: int, width: int, height: int) -> None:
        source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}")
        source += ("-framerate", str(fps), "-i", "pipe:0")
        self._process = subprocess.Popen(
            [_ffmpeg(), *_QUIET, "-y", *source, *_ENCODE, *_CONTAINER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        self._stdin, self._stderr = self._process.stdin, self._process.stderr
        self._messages: collections.deque[bytes] = collections.deque(maxlen=20)
        # A thread, because a full pipe that nobody reads would stop ffmpeg, and then us.
        self._reader = threading.Thread(
            target=self._messages.extend, args=(self._stderr,), daemon=True
        )
        self._reader.start()

    def write(self, frames: np.ndarray) -> None:
        try:
            self._stdin.write(frames.data)
        except BrokenPipeError:
            raise self._failure() from None

    def finish(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # the exit status tells more
            self._stdin.close()
        if self._process.wait():
            raise self._failure()

    def discard(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # ffmpeg may be a script around ffmpeg
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        self._reader.join()
        self._stderr.close()

    def _failure(self) -> OSError:
        """What ffmpeg said when it gave up."""
        status = self._process.wait()
        self._reader.join()
        ended = f"killed by {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        # Its last words may be about what came of it.
        full = [line for line in self._messages if os.strerror(errno.ENOSPC).encode() in line]
        return OSError(f"ffmpeg: {_last_words(full) or _last_words(self._messages) or ended}")


def _ffmpeg() -> str:
    """The ffmpeg that imageio-ffmpeg brings.

    Raises:
        MissingPackageError: it has none for this machine.
    """
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise MissingPackageError(
            f"no ffmpeg for .mp4 files ({error}); install ffmpeg or write .npy"
        ) from error


def _last_words(lines: collections.deque[bytes] | list[bytes]) -> str:
    """The last line that is not empty, as text; empty if there is none."""
    texts = [line.decode("utf-8", "replace").strip() for line in lines]
    return next((text for text in reversed(texts) if text), "")
