"""list the slices of a fleet: what each serves, and what it is at

A line each: name, state, for how long, model, layout, and more of the state in words. A server with
its own slice has no such list, which is said, with exit code 1.
"""

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

from wan_tpu.cli.interruptible import ended_by_signals
from wan_tpu.cli.progress import say
from wan_tpu.cli.remote.answers import plain
from wan_tpu.cli.remote.listing import age
from wan_tpu.cli.remote.options import open_server
from wan_tpu.cli.streams import write_data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu remote slices`."""
    parser.add_argument(
        "--json", action="store_true", help="a JSON list, each as the server tells it"
    )


def run(parsed: argparse.Namespace) -> int:
    """Prints a line each, or JSON."""
    with open_server(parsed) as server, ended_by_signals():
        found = server.slices()
    if parsed.json:
        write_data(json.dumps(found, indent=2) + "\n")
    elif not found:
        say("no slice is there now")
    else:
        write_data(table(found, now=time.time()))
    return 0


def table(slices: Sequence[dict[str, Any]], *, now: float) -> str:
    """A line each: name, state, age of the state, model, layout, words.

    Args:
        slices: in the order of the lines.
        now: Unix time.
    """
    rows = [_cells(each, now) for each in slices]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return "".join(f"{line}\n" for line in lines)


def _cells(each: dict[str, Any], now: float) -> tuple[str, ...]:
    since = each.get("since")
    seconds = since if isinstance(since, int | float) else None
    name, state, model, layout, words = (
        plain(each.get(field) or "") for field in ("id", "state", "model", "layout", "words")
    )
    return name, state, age(seconds, now), model, layout or "-", words
