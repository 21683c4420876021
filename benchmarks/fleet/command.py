"""how a fleet grows and what it asks of the servers behind it, measured on this machine

Needs a checkout, PostgreSQL's programs and the packages of the tests: everything is real but the
engines, which sleep. Jobs a second with more and more slices; what polls wait, and what Temporal
hears of them; how long a job is nobody's when its slice ends; and what a thousand slices would ask
of each part.
"""

import argparse
import dataclasses
import os
import pathlib
import sys
import time

from wan_tpu.cli.options import positive_int

PARTS = ("scaling", "handover", "polls", "stores")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m benchmarks fleet`."""
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="of what (default: everything)"
    )
    parser.add_argument(
        "--slices",
        type=positive_int,
        nargs="+",
        default=[1, 2, 4, 8],
        metavar="N",
        help="so many make jobs in turn (default: 1 2 4 8)",
    )
    parser.add_argument(
        "--jobs", type=positive_int, default=8, help="for each of them (default: %(default)s)"
    )
    parser.add_argument(
        "--steps",
        type=positive_int,
        default=10,
        help="of a job, a fifth of a second each (default: %(default)s)",
    )
    parser.add_argument(
        "--polls",
        type=int,
        nargs="+",
        default=[0, 100, 500],
        metavar="N",
        help="a second over two servers of the API (default: 0 100 500)",
    )
    parser.add_argument(
        "--queued", type=positive_int, default=500, help="jobs meanwhile (default: %(default)s)"
    )
    parser.add_argument(
        "--running", type=positive_int, default=2, help="slices meanwhile (default: %(default)s)"
    )
    parser.add_argument(
        "--seconds", type=float, default=15, help="of a turn of polls (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats",
        type=positive_int,
        default=5,
        help="handovers of each kind; every other one a round of polls (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="PATH", help="write every figure to this file")


def run(parsed: argparse.Namespace) -> int:
    """Measures and reports; 1 if any poll failed."""
    from benchmarks.fleet import handover, polls, scaling, stores
    from benchmarks.fleet.running import running_fleet
    from wan_tpu.pipeline.whole_file import write_json_atomically

    figures: dict[str, object] = {}
    lines = [f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the beginning"]
    errors: list[str] = []
    begun = time.monotonic()
    with running_fleet() as fleet:
        if "scaling" in parsed.only:
            rows = scaling.measure(fleet, sorted(parsed.slices), parsed.jobs, parsed.steps)
            figures["scaling"] = [dataclasses.asdict(row) for row in rows]
            lines += scaling.report(rows, parsed.steps)
        if "handover" in parsed.only:
            figures["handover"] = found = handover.measure(fleet, parsed.repeats)
            lines += handover.report(found)
        if "polls" in parsed.only:
            turns = polls.measure(
                fleet,
                rates=parsed.polls,
                slices=parsed.running,
                queued=parsed.queued,
                steps=5 * parsed.steps,
                seconds=parsed.seconds,
                repeats=-(-parsed.repeats // 2),
            )
            figures["polls"] = [dataclasses.asdict(turn) for turn in turns]
            lines += polls.report(turns, parsed.queued, parsed.running)
            errors = [error for turn in turns for error in turn.errors]
        if "stores" in parsed.only:
            figures["stores"] = seen = stores.measure(fleet)
            lines += stores.report(seen)
    lines.append(f"took {time.monotonic() - begun:.0f} s; load {os.getloadavg()[0]:.1f} at the end")
    if parsed.json is not None:
        write_json_atomically(pathlib.Path(parsed.json), figures)
    sys.stdout.write("\n".join(lines) + "\n")
    for error in sorted(set(errors)):
        sys.stderr.write(f"{errors.count(error)} x {error}\n")
    return 1 if errors else 0
