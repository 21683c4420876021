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
from wan_tpu.errors import OutputError
from wan_tpu.pipeline.side_file import check_side_file, free_name, side_file_of, write_side_file
from wan_tpu.pipeline.video_file import VideoWriter, check_output_path
from wan_tpu.request import VideoRequest

DEFAULT_OUTPUT = "video.mp4"


def check_output(given: str | None) -> pathlib.Path:
    """Where the video goes; it and the file beside it can be written.

    Raises:
        InputError: a suffix that is not written.
        OutputError: something is in the way.
    """
    output = pathlib.Path(DEFAULT_OUTPUT if given is None else given)
    if given is None and (os.path.lexists(output) or os.path.lexists(side_file_of(output))):
        output = free_name(output)
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
    writer = VideoWriter(output, fps=request.fps, width=request.width, height=request.height)
    with running.undoing(writer.abort), writer:
        yield writer.write


def write_metadata(output: pathlib.Path, metadata: Mapping[str, Any]) -> None:
    """How the video was made: the file beside it, and a line per stage on stderr."""
    write_side_file(output, metadata)
    steps = metadata["request"]["num_inference_steps"]
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
    return dtype if dtype == vae_dtype else f"{dtype} with the VAE in {vae_dtype}"


def print_path(output: pathlib.Path) -> None:
    """The path as bytes: a shell gives back what it was given. The video is there in any case."""
    try:
        write_data(os.fsencode(output) + b"\n")
    except (OutputError, BrokenPipeError) as error:
        sys.stderr.write(f"wan-tpu: {output} is complete; {error}\n")
