"""bring a video that a server has, or will have, here

One that is not completed yet is waited for. Ctrl-C leaves it as it is.
"""

import argparse
import pathlib

from wan_tpu.cli.interruptible import ended_by_signals
from wan_tpu.cli.output import print_path
from wan_tpu.cli.progress import ProgressBars
from wan_tpu.cli.remote.download import SUFFIXES, VIDEO, download
from wan_tpu.cli.remote.follow import follow
from wan_tpu.cli.remote.generate import bring, check_video_output
from wan_tpu.cli.remote.options import open_server, video_id
from wan_tpu.errors import InputError
from wan_tpu.pipeline.whole_file import check_file_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu remote fetch`."""
    parser.add_argument("id", type=video_id, metavar="ID", help="of the video")
    parser.add_argument(
        "-o", "--output", metavar="FILE",
        help="replaced where it is there (default: the id, with the suffix of the variant)",
    )  # fmt: skip
    parser.add_argument(
        "--variant", choices=tuple(SUFFIXES), default=VIDEO,
        help="the video (.mp4), one frame of it (.webp) or many (.jpg); others than wan-tpu's "
        "servers may not have them (default: %(default)s)",
    )  # fmt: skip


def run(parsed: argparse.Namespace) -> int:
    """Waits, brings, prints the path."""
    output = parsed.output or f"{parsed.id}{SUFFIXES[parsed.variant][0]}"
    path = _check(output, parsed.variant)
    with open_server(parsed) as server, ended_by_signals():
        video = server.retrieve(parsed.id)
        if parsed.variant == VIDEO:
            bring(server, video, path)
        else:
            with ProgressBars() as bars:
                video = follow(server, video, bars)
                download(server, video, path, bars, variant=parsed.variant)
    print_path(path)
    return 0


def _check(output: str, variant: str) -> pathlib.Path:
    if variant == VIDEO:
        return check_video_output(output)
    suffixes = SUFFIXES[variant]
    if pathlib.Path(output).suffix.lower() not in suffixes:
        raise InputError(
            f"a {variant} is a {suffixes[0]}, got {output!r}; write "
            f"{pathlib.Path(output).stem or variant}{suffixes[0]}"
        )
    return check_file_path(output)
