"""write what a training has learnt as others read it: an adapter, a word's vectors, a model"""

import argparse
import os
from pathlib import Path

from wan_tpu.cli.options import positive_int
from wan_tpu.cli.output import print_path
from wan_tpu.errors import InputError, OutputError
from wan_tpu.pipeline.whole_file import check_file_path, reporting
from wan_tpu.training.run_folder import read_run

FOLDERS = ("folder", "peft")
STYLES = {
    "lora": ("comfyui", "diffusers", "kohya", "peft"),
    "full": ("folder",),
    "embedding": (),
}
"""By what is trained: whose names the file has, the default first; vectors have one form."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu train export`."""
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE",
        help=".safetensors, of two experts' LoRA two files, FILE_high_noise and FILE_low_noise; of "
        "all weights, and of style peft, a folder",
    )  # fmt: skip
    parser.add_argument(
        "--style",
        choices=[style for styles in STYLES.values() for style in styles],
        help="of a LoRA: comfyui (default; read by diffusers, too), diffusers, kohya or peft; of "
        "all weights: folder",
    )
    parser.add_argument(
        "--step", type=positive_int, metavar="N", help="of this checkpoint; default: the newest"
    )
    parser.add_argument("--ema", action="store_true", help="the running average of it")


def run(parsed: argparse.Namespace) -> int:
    """Writes the file or folder, and prints its path."""
    folder = Path(os.path.abspath(parsed.run))
    settings = read_run(folder)
    style = _style(settings["kind"], parsed.style)
    if parsed.ema and settings["config"]["optimiser.ema_decay"] is None:
        raise InputError(f"{folder} keeps no average: optimiser.ema_decay is open; leave out --ema")
    output = _check_output(Path(parsed.output), is_folder=style in FOLDERS)

    from wan_tpu import runtime

    runtime.start(host_devices=1)  # a training may have the accelerator
    from wan_tpu.training.export import export

    for path in export(folder, output, style=style, step=parsed.step, ema=parsed.ema):
        print_path(path)
    return 0


def _style(kind: str, asked: str | None) -> str | None:
    """The style of the file.

    Raises:
        InputError: what is trained is not written so.
    """
    known = STYLES[kind]
    if asked is None:
        return known[0] if known else None
    if asked not in known:
        can = f"as {' or '.join(known)}" if known else "in one form; leave --style out"
        raise InputError(f"--style {asked} is not for {kind}, which is written {can}")
    return asked


def _check_output(output: Path, *, is_folder: bool) -> Path:
    """Finds out, before any work, whether the result can be written.

    Raises:
        InputError: a file of another suffix.
        OutputError: something is in the way.
    """
    if not is_folder:
        if output.suffix != ".safetensors":
            raise InputError(
                f"the output must end in .safetensors, got {os.fspath(output)!r}; write "
                f"{output.stem or 'result'}.safetensors"
            )
        return check_file_path(output)
    with reporting(output):
        if os.path.lexists(output):
            raise OutputError(f"cannot write {output}: it is there already; take another name")
        if not output.absolute().parent.is_dir():
            raise OutputError(f"cannot write {output}: there is no folder {output.parent}")
    return output
