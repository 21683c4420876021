"""list the videos of a server, newest first"""

import argparse
import datetime
import itertools
import json
import shutil
import sys
import time

from wan_tpu.cli.interruptible import ended_by_signals
from wan_tpu.cli.options import positive_int
from wan_tpu.cli.remote.options import open_server
from wan_tpu.cli.remote.video import RemoteVideo
from wan_tpu.cli.streams import write_data

SHOWN = 20
NARROWEST, LONGEST_STATE = 20, 48


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu remote list`."""
    parser.add_argument(
        "--limit", type=positive_int, default=SHOWN, metavar="N",
        help="the newest N (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="a JSON list, each as the server tells it"
    )


def run(parsed: argparse.Namespace) -> int:
    """Prints a line each, or JSON."""
    with open_server(parsed) as server, ended_by_signals():
        videos = list(itertools.islice(server.videos(), parsed.limit))
    if parsed.json:
        write_data(json.dumps([video.data for video in videos], indent=2) + "\n")
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        write_data(table(videos, width, now=time.time()))
    return 0


def table(videos: list[RemoteVideo], width: int | None, *, now: float) -> str:
    """A line each: id, age, size, seconds, state, prompt.

    Args:
        videos: in the order of the lines.
        width: letters of a line; None for lines of any length.
        now: Unix time.
    """
    rows = [
        (
            video.id,
            age(video.number("created_at"), now),
            video.text("size"),
            f"{video.text('seconds')} s",
            video.state[:LONGEST_STATE],
        )
        for video in videos
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row, video in zip(rows, videos, strict=True):
        cells = [cell.ljust(size) for cell, size in zip(row, widths, strict=True)]
        begin = "  ".join(cells)
        prompt = video.text("prompt")
        if width is not None:
            prompt = prompt[: max(width - len(begin) - 2, NARROWEST)]
        lines.append(f"{begin}  {prompt}".rstrip())
    return "".join(f"{line}\n" for line in lines)


def age(since: float | None, now: float) -> str:
    """How long ago something was, in its largest unit: `3 min`; empty where that is not known.

    Args:
        since: Unix time of it.
        now: Unix time.
    """
    if since is None:
        return ""
    seconds = max(int(now - since), 0)
    if seconds < 3600:
        return f"{seconds // 60} min"
    if seconds < 48 * 3600:
        return f"{seconds // 3600} h"
    return str(datetime.timedelta(seconds=seconds).days) + " d"
