"""Where a generation goes: the video, the file beside it, a summary, and the name on stdout."""

import contextlib
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from wan_tpu.cli.interruptible import Interruptible
from wan_tpu.cli.streams import write_data
from wan_tpu.errors import InputError, OutputError
from wan_tpu.pipeline.picture_file import PICTURE_SUFFIXES, PictureWriter, is_picture
from wan_tpu.pipeline.side_file import check_side_file, free_name, side_file_of, write_side_file
from wan_tpu.pipeline.video_file import SUFFIXES, VideoWriter, check_output_path
from wan_tpu.pipeline.whole_file import check_file_path
from wan_tpu.request import VideoRequest

DEFAULT_OUTPUT = "video.mp4"


def check_output(given: str | None, num_frames: int | None) -> pathlib.Path:
    """Where the video, or the picture of one frame, goes; it and the file beside can be written.

    Args:
        given: the file that was named; None for none.
        num_frames: that were asked for; None leaves them to the model.

    Raises:
        InputError: a suffix that is not written, or a picture of more than one frame.
        OutputError: something is in the way.
    """
    output = pathlib.Path(DEFAULT_OUTPUT if given is None else given)
    if given is None and (os.path.lexists(output) or os.path.lexists(side_file_of(output))):
        output = free_name(output)
    if is_picture(output):
        if num_frames != 1:
            frames = "the model's number of" if num_frames is None else num_frames
            raise InputError(
                f"{output} is a picture, of one frame, and the video has {frames} frames: add "
                f"--frames 1, or write {output.with_suffix('.mp4')}"
            )
        output = check_file_path(output)
    elif output.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"output must end in {' or '.join(SUFFIXES)}, or for one frame in "
            f"{' or '.join(PICTURE_SUFFIXES)}, got {os.fspath(output)!r}; write "
            f"{output.stem or 'video'}.mp4, of which ffmpeg makes any other format"
        )
    else:
        output = check_output_path(output)
    check_side_file(output)
    return output


@contextlib.contextmanager
def open_video(
    output: pathlib.Path | None, request: VideoRequest, running: Interruptible
) -> Iterator[Callable[[np.ndarray], None] | None]:
    """What takes the frames of a complete request; None in a process that writes nothing."""
    if output is None:
        yield None
        return
    assert request.fps is not None
    assert request.width is not None
    assert request.height is not None
    writer: VideoWriter | PictureWriter
    if is_picture(output):
        writer = PictureWriter(output, width=request.width, height=request.height)
    else:
        writer = VideoWriter(output, fps=request.fps, width=request.width, height=request.height)
    with running.undoing(writer.abort), writer:
        yield writer.write


def write_metadata(output: pathlib.Path, metadata: Mapping[str, Any]) -> None:
    """How the video was made: the file beside it, and a line per stage on stderr."""
    write_side_file(output, metadata)
    say_metadata(metadata)


def say_metadata(metadata: Mapping[str, Any]) -> None:
    """A line per stage on stderr, and one of what ran."""
    steps = sum(metadata["steps"].values())
    for name, seconds in metadata["seconds"].items():
        each = f"  ({seconds / steps:.3f} s per step)" if name == "denoise" else ""
        sys.stderr.write(f"{name:<22}{seconds:>9.2f} s{each}\n")
    sys.stderr.write(
        f"{metadata['model']}, layout {metadata['layout']}, attention {metadata['attention']}, "
        f"VAE {metadata['vae']}, {_dtypes(metadata)}, "
        f"{metadata['num_devices']} x {metadata['device_kind']}, seed {metadata['seed']}\n"
    )


def _dtypes(metadata: Mapping[str, Any]) -> str:
    dtype, vae_dtype = metadata["dtype"], metadata["vae_dtype"]
    quantize = metadata.get("quantize")  # a server of an earlier version does not tell
    said = dtype if quantize is None else f"{dtype} and {quantize}"
    return said if dtype == vae_dtype else f"{said} with the VAE in {vae_dtype}"


def print_path(output: pathlib.Path) -> None:
    """The path as bytes: a shell gives back what it was given. The video is there in any case."""
    try:
        write_data(os.fsencode(output) + b"\n")
    except (OutputError, BrokenPipeError) as error:
        sys.stderr.write(f"wan-tpu: {output} is complete; {error}\n")
