"""say how alike two videos are: PSNR and SSIM, in all and frame by frame

What a shortcut cost, or whether a change changed anything: of two files of one size and length,
.mp4, .mov, .webm, .mkv, .avi, .gif or .npy. Exit code 0 however alike they are.
"""

import argparse
import contextlib
import json
import math
import pathlib
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from wan_tpu.cli.chart import chart
from wan_tpu.cli.interruptible import ended_by_signals
from wan_tpu.cli.progress import ProgressBars
from wan_tpu.cli.streams import write_data
from wan_tpu.errors import InputError, MediaError, MissingPackageError
from wan_tpu.pipeline.progress import Progress
from wan_tpu.pipeline.whole_file import aside_of, check_file_path, publish, reporting

if TYPE_CHECKING:
    from wan_tpu.image.similarity import FrameSimilarity, Similarity

CHART_HEIGHT, CHART_WIDTH = 5, 100
"""Lines and columns; a narrower terminal has fewer."""

LABEL_WIDTH = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu compare`."""
    parser.add_argument("first", metavar="A", help="a video")
    parser.add_argument("second", metavar="B", help="another one of the same size and length")
    parser.add_argument("--json", action="store_true", help="JSON, with every frame")
    parser.add_argument(
        "--plot", metavar="FILE", help="also draw both by frame as a .png (needs matplotlib)"
    )


def run(parsed: argparse.Namespace) -> int:
    """Compares, and prints."""
    plot = None if parsed.plot is None else _check_plot(parsed.plot)
    names = parsed.first, parsed.second
    with ended_by_signals():
        first, second = map(_open, names)
        similarity = _compare(first, second)
    if plot is not None:
        _write_plot(plot, similarity, names)
    if parsed.json:
        report = {"a": parsed.first, "b": parsed.second, **first.to_json(), **_to_json(similarity)}
        write_data(json.dumps(report, indent=2) + "\n")
    else:
        write_data(_told(similarity, first, names))
    return 0


class _Video:
    """An open video whose size and length are known."""

    def __init__(self, name: str, shape: tuple[int, int, int], frames: Iterator[np.ndarray]):
        self.name = name
        self.num_frames, self.height, self.width = shape
        self.frames = frames

    def __str__(self) -> str:
        return f"{self.name} has {self.num_frames} frames of {self.width}x{self.height}"

    def to_json(self) -> dict[str, int]:
        return {"width": self.width, "height": self.height, "num_frames": self.num_frames}


def _open(name: str) -> _Video:
    """A video's file, which is decoded frame by frame as they are asked for.

    Raises:
        MediaError: it cannot be read, or is no video; so while it is decoded.
    """
    path = pathlib.Path(name).expanduser()
    with _naming(name):
        if path.suffix.lower() == ".npy":
            return _stored(name, path)
        from wan_tpu.image.clip_reader import OWN_FILES
        from wan_tpu.image.video import open_clip

        info = open_clip(path, bounds=OWN_FILES).info
    frames = _decoded(name, path, (info.width, info.height))
    return _Video(name, (info.num_frames, info.height, info.width), frames)


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """What is wrong with a file is said with its name."""
    try:
        yield
    except (OSError, ValueError) as error:
        if isinstance(error, InputError) and not isinstance(error, MediaError):
            raise
        why = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"{name} cannot be read: {why}") from None


def _stored(name: str, path: pathlib.Path) -> _Video:
    """The raw frames of a `.npy`."""
    frames = np.load(path, mmap_mode="r", allow_pickle=False)
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise MediaError(
            f"it holds {frames.dtype} {list(frames.shape)}, and no uint8 [frames, height, width, 3]"
        )
    return _Video(name, frames.shape[:3], iter(frames))


def _decoded(name: str, path: pathlib.Path, size: tuple[int, int]) -> Iterator[np.ndarray]:
    from wan_tpu.image.clip_colours import ToRgb
    from wan_tpu.image.clip_reader import OWN_FILES, opened, seen_pixels, timed

    to_rgb = ToRgb()
    with _naming(name), opened(path, OWN_FILES) as (container, stream):
        for frame, _ in timed(container, stream, OWN_FILES):
            yield seen_pixels(frame, stream, to_rgb, size)


def _compare(first: _Video, second: _Video) -> "Similarity":
    """Frame by frame, as both are decoded.

    Raises:
        InputError: they differ in size or length.
    """
    from wan_tpu.image.similarity import compare_videos

    if first.to_json() != second.to_json():
        raise InputError(f"{first}, and {second}; what is compared must be alike in both")
    with ProgressBars() as bars:

        def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            for index in range(first.num_frames):
                pair = next(first.frames, None), next(second.frames, None)
                if pair[0] is None or pair[1] is None:
                    broken = first if pair[0] is None else second
                    raise MediaError(f"{broken}, of which only {index} can be decoded")
                yield pair[0], pair[1]
                done = Progress(
                    stage="compare", done=index + 1, total=first.num_frames, seconds=0.0
                )
                bars.show(done)

        return compare_videos(pairs())


def _told(similarity: "Similarity", shape: _Video, names: tuple[str, str]) -> str:
    """The lines for people."""
    frames = similarity.frames
    head = f"{names[0]}, {names[1]}: {shape.num_frames} frames of {shape.width}x{shape.height}\n"
    if similarity.is_equal:
        return head + "equal: every pixel of every frame\n"
    num_equal = sum(frame.largest_difference == 0 for frame in frames)
    lines = [
        f"PSNR  {similarity.psnr:7.2f} dB  {_worst('psnr', frames, '.2f')}\n",
        f"SSIM  {similarity.ssim:10.5f}  {_worst('ssim', frames, '.5f')}\n",
        f"largest difference {similarity.largest_difference} of 255, {num_equal} of {len(frames)} "
        "frames equal\n",
    ]
    width = min(shutil.get_terminal_size().columns - LABEL_WIDTH, CHART_WIDTH)
    for name, title in (("psnr", "PSNR in dB"), ("ssim", "SSIM")):
        drawn = chart(
            [getattr(frame, name) for frame in frames],
            width=max(width, 1),
            height=CHART_HEIGHT,
            encoding=sys.stdout.encoding or "utf-8",
        )
        lines += [f"\n{title}, frame by frame\n", drawn]
    return head + "".join(lines)


def _worst(name: str, frames: "tuple[FrameSimilarity, ...]", form: str) -> str:
    values = [getattr(frame, name) for frame in frames]
    lowest = min(values)
    return f"lowest {lowest:{form}}, frame {values.index(lowest)}"


def _to_json(similarity: "Similarity") -> dict[str, Any]:
    """JSON has no infinity: the PSNR of what is equal is null."""
    return {
        "equal": similarity.is_equal,
        "psnr": _finite(similarity.psnr),
        "ssim": similarity.ssim,
        "largest_difference": similarity.largest_difference,
        "frames": [
            {
                "psnr": _finite(frame.psnr),
                "ssim": frame.ssim,
                "largest_difference": frame.largest_difference,
            }
            for frame in similarity.frames
        ],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _check_plot(name: str) -> pathlib.Path:
    """Where the picture goes, and that it can be drawn.

    Raises:
        InputError: another suffix; OutputError: something is in the way; MissingPackageError:
            matplotlib is not installed.
    """
    path = pathlib.Path(name)
    if path.suffix.lower() != ".png":
        raise InputError(f"a plot is a .png, got {name!r}; write {path.stem or 'plot'}.png")
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingPackageError("a plot needs matplotlib: pip install 'wan_tpu[plot]'") from None
    return check_file_path(path)


def _write_plot(path: pathlib.Path, similarity: "Similarity", names: tuple[str, str]) -> None:
    """Both by frame; an infinite PSNR leaves a gap."""
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure: Any = Figure(figsize=(9, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    numbers = range(len(similarity.frames))
    psnr = [frame.psnr if math.isfinite(frame.psnr) else math.nan for frame in similarity.frames]
    upper.plot(numbers, psnr, ".-", color="#3b6ea5")
    upper.set_ylabel("PSNR, dB")
    lower.plot(numbers, [frame.ssim for frame in similarity.frames], ".-", color="#d08c2c")
    lower.set_ylabel("SSIM")
    lower.set_xlabel("frame")
    figure.suptitle(f"{names[0]} and {names[1]}")
    aside = aside_of(path)
    with reporting(path):
        try:
            figure.savefig(aside, format="png", dpi=120)
            publish(aside, path)
        finally:
            aside.unlink(missing_ok=True)
