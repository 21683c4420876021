"""check and prepare what a model is to learn from

`wan-tpu dataset check` opens and decodes every file, without JAX and without a device;
`wan-tpu dataset prepare` encodes those that are good, once; `wan-tpu dataset worker` does it for a
fleet, and `wan-tpu dataset fetch` brings home what one has made.
"""

import argparse
import json
import unicodedata
from typing import TYPE_CHECKING, Any

from wan_tpu.cli import dataset_fleet, dataset_prepare
from wan_tpu.cli.dataset_options import (
    add_bucket_arguments,
    add_listing_arguments,
    read_buckets,
    read_listing,
)
from wan_tpu.cli.interruptible import ended_by_signals
from wan_tpu.cli.options import positive_int
from wan_tpu.cli.progress import ProgressBars
from wan_tpu.cli.streams import write_data
from wan_tpu.pipeline.progress import Progress

if TYPE_CHECKING:
    from wan_tpu.dataset.check import Report
    from wan_tpu.dataset.faults import Finding

EXIT_FAULTY = 1
SHOWN_NOTES = 3
"""Files that have the same note and are each named; of more, it is said how many they are."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The commands of `wan-tpu dataset`."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, add, run, summary in (
        ("check", _add_check_arguments, _run_check, "say what is wrong with each file"),
        (
            "prepare",
            dataset_prepare.add_arguments,
            dataset_prepare.run,
            "encode clips and captions",
        ),
        (
            "worker",
            dataset_fleet.add_worker_arguments,
            dataset_fleet.run_worker,
            "encode shards for a fleet until it is told to end",
        ),
        (
            "fetch",
            dataset_fleet.add_fetch_arguments,
            dataset_fleet.run_fetch,
            "bring what a fleet has encoded to a folder, for a training",
        ),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        add(action)
        action.set_defaults(run_action=run)


def run(parsed: argparse.Namespace) -> int:
    """Runs one of them; returns the exit code."""
    return parsed.run_action(parsed)


def _add_check_arguments(parser: Any) -> None:
    add_listing_arguments(parser)
    parser.add_argument(
        "--model", default="wan2.1-t2v-1.3b",
        help="whose size, frames and rate are wanted: a known model's name, wan-tiny, a folder or "
        "a hub id (default: %(default)s)",
    )  # fmt: skip
    add_bucket_arguments(parser)
    parser.add_argument(
        "--workers", type=positive_int, metavar="N",
        help="processes that decode (default: one a core)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")


def _run_check(parsed: argparse.Namespace) -> int:
    """Prints what is wrong; 1 if anything is."""
    from wan_tpu.checkpoints.models import describe_model
    from wan_tpu.dataset.check import check

    buckets = read_buckets(parsed, describe_model(parsed.model))
    listing = read_listing(parsed)
    with ended_by_signals(), ProgressBars() as bars:

        def show(done: int, total: int) -> None:
            if total:
                bars.show(Progress(stage="check", done=done, total=total, seconds=0.0))

        report = check(listing, buckets, workers=parsed.workers, on_file=show)
    if parsed.json:
        write_data(json.dumps(report.to_json(), indent=2) + "\n")
    else:
        write_data(_table(report))
    is_good = report.good and not report.faults
    return 0 if is_good else EXIT_FAULTY


def _table(report: "Report") -> str:
    """Faults, notes, what becomes of the rest, and how many there are of each."""
    lines = [f"fault  {each.name}: {each.kind}: {each.words}" for each in report.faults]
    lines += _note_lines(report.notes)
    if report.placement.placed:
        lines += ["", *report.placement.table().splitlines()]
    good, faults, notes = len(report.good), len(report.faults), len(report.notes)
    total = len(report.listing.entries)
    counts = [f"{good} of {total} good", _counted(faults, "fault"), _counted(notes, "note")]
    lines += ["" if lines else None, ", ".join(counts)]
    if not total:
        lines.append(f"{report.listing.path} has no clip or picture that is read")
    return "\n".join(_printable(line) for line in lines if line is not None) + "\n"


def _printable(line: str) -> str:
    """A line that stays one, and moves no cursor, whatever files are called."""
    return "".join(
        letter.encode("unicode_escape").decode() if unicodedata.category(letter) == "Cc" else letter
        for letter in line
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _note_lines(notes: "list[Finding]") -> list[str]:
    """A line a note, or one for all files that have the same."""
    files: dict[tuple[str, str], list[str]] = {}
    for note in notes:
        files.setdefault((note.kind, note.words), []).append(note.name)
    lines = []
    for (kind, words), names in files.items():
        if len(names) > SHOWN_NOTES:
            lines.append(f"note   {len(names)} files, {names[0]} the first: {kind}: {words}")
        else:
            lines += [f"note   {name}: {kind}: {words}" for name in names]
    return lines
