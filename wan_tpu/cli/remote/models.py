"""list what a server has: its models, and the adapters, presets and step caches of each

A server with its own slice has one model. Those of a fleet come and go with its slices; which one
makes a video is said by `wan-tpu remote generate --model ID`.
"""

import argparse
import json
from typing import Any

from wan_tpu.cli.interruptible import ended_by_signals
from wan_tpu.cli.progress import say
from wan_tpu.cli.remote.answers import plain
from wan_tpu.cli.remote.options import open_server
from wan_tpu.cli.streams import write_data

KINDS = ("adapters", "presets", "step_caches")
"""What a model of wan-tpu's servers lists; those of others list nothing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu remote models`."""
    parser.add_argument(
        "--json", action="store_true", help="a JSON list, each as the server tells it"
    )


def run(parsed: argparse.Namespace) -> int:
    """Prints a line each, or JSON."""
    with open_server(parsed) as server, ended_by_signals():
        found = server.models()
    if parsed.json:
        write_data(json.dumps(found, indent=2) + "\n")
    elif not found:
        say("no slice serves a model now")
    else:
        write_data("".join(f"{line}\n" for model in found for line in lines_of(model)))
    return 0


def lines_of(model: dict[str, Any]) -> list[str]:
    """A model's id, then what it has below it: kind, name, and what it is or what is wrong."""
    rows = [
        (kind.removesuffix("s").replace("_", " "), plain(each.get("name")), _words(each))
        for kind in KINDS
        for each in model.get(kind) or ()
        if isinstance(each, dict)
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [plain(model.get("id")), *(f"  {line}" for line in lines)]


def _words(each: dict[str, Any]) -> str:
    if each.get("fault"):
        return f"cannot be used: {plain(each['fault'])}"
    expert, trigger = each.get("expert"), each.get("trigger")
    words = [
        plain(each.get("label") or each.get("summary") or ""),
        plain(each.get("description") or ""),
        f"for {plain(expert)} noise" if expert else "",
        f"say {plain(trigger)!r}" if trigger else "",
    ]
    if each.get("own") is False:
        words.append("with weights that were distilled to it")
    return "; ".join(filter(None, words))
