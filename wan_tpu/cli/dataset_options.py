"""Options that the commands of `wan-tpu dataset` share, and how their values are read."""

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

from wan_tpu.errors import InputError
from wan_tpu.geometry import parse_size

if TYPE_CHECKING:
    from wan_tpu.checkpoints.description import ModelDescription
    from wan_tpu.dataset.buckets import Buckets
    from wan_tpu.dataset.entry import Columns, Listing


def add_listing_arguments(parser: Any) -> None:
    """What is read: `PATH`, `--columns`."""
    parser.add_argument(
        "path", metavar="PATH",
        help="a folder of clips and pictures with a .txt beside each, or a manifest: .jsonl, "
        ".json, .csv, .tsv",
    )  # fmt: skip
    parser.add_argument(
        "--columns", metavar="path=NAME,caption=NAME",
        help="fields of the manifest, where they are not called as usual",
    )  # fmt: skip


def is_bucket(source: str) -> bool:
    """Whether clips lie in a bucket, not in a folder."""
    return source.startswith(("s3://", "gs://"))


def read_listing(parsed: argparse.Namespace) -> "Listing":
    """What `add_listing_arguments` names.

    Raises:
        InputError: it cannot be read as a whole.
    """
    from wan_tpu.dataset.listing import list_entries

    return list_entries(pathlib.Path(parsed.path), columns=read_columns(parsed))


def read_columns(parsed: argparse.Namespace) -> "Columns | None":
    """What `--columns` says.

    Raises:
        InputError: it is written otherwise.
    """
    from wan_tpu.dataset.entry import Columns

    return None if parsed.columns is None else Columns.from_text(parsed.columns)


def add_bucket_arguments(parser: Any) -> None:
    """What is wanted of the files: `--size`, `--frames`, `--fps`; needs `--model` beside them."""
    parser.add_argument(
        "--size", action="append", metavar="WxH",
        help="pixels; several joined by ',' or given again: each file goes to the nearest ratio "
        "that it covers; default: the model's",
    )  # fmt: skip
    parser.add_argument(
        "--frames", action="append", metavar="N",
        help="4n + 1; several likewise: each clip goes to the most that it has; default: the "
        "model's",
    )  # fmt: skip
    parser.add_argument(
        "--fps", type=float, metavar="F", help="frames per second; default: the model's"
    )


def read_buckets(parsed: argparse.Namespace, description: "ModelDescription") -> "Buckets":
    """What `add_bucket_arguments` says, filled in by the model.

    Raises:
        InputError: a size or a number of frames that the model cannot make.
    """
    from wan_tpu.dataset.buckets import Buckets
    from wan_tpu.pipeline.check import compression_of

    defaults = description.defaults
    sizes = [parse_size(text) for text in _listed(parsed.size)]
    lengths = [_frames(text) for text in _listed(parsed.frames)]
    return Buckets(
        sizes=tuple(dict.fromkeys(sizes)) or ((defaults.width, defaults.height),),
        lengths=tuple(dict.fromkeys(lengths)) or (defaults.num_frames,),
        fps=defaults.fps if parsed.fps is None else parsed.fps,
        compression=compression_of(description),
    )


def _listed(given: list[str] | None) -> list[str]:
    return [part.strip() for text in given or [] for part in text.split(",") if part.strip()]


def _frames(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) == int(text)):
        raise InputError(f"the number of frames must be 4n + 1, for example 81, got {text!r}")
    return int(text)
