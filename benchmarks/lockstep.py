"""what it costs to keep processes in step: a message to all followers, and an answer of all of them

Starts processes on this machine that do nothing but follow. Their number is that of a slice's
hosts: 4 for a v6e-16, 64 for a v6e-256.
"""

import argparse
import contextlib
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from wan_tpu.cli.options import positive_int
from wan_tpu.multihost.group import ProcessGroup
from wan_tpu.multihost.identity import Identity
from wan_tpu.multihost.join import join
from wan_tpu.multihost.leader import Leader
from wan_tpu.multihost.lockstep import Lockstep, run_in_step

SAME: Identity = {}
"""They run the same file."""

FOLLOWER = """
import sys
from benchmarks.lockstep import follow
follow(*sys.argv[1:])
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m benchmarks lockstep`."""
    parser.add_argument(
        "--processes",
        type=positive_int,
        nargs="+",
        default=[2, 4, 8, 16],
        help="how many there are, for each row (default: 2 4 8 16)",
    )
    parser.add_argument(
        "--steps", type=positive_int, default=50, help="of a job (default: %(default)s)"
    )
    parser.add_argument(
        "--step-milliseconds",
        type=float,
        default=20.0,
        help="that process 0 rests in each, as if devices worked (default: %(default)s)",
    )
    parser.add_argument(
        "--jobs", type=positive_int, default=5, help="counted, after one that is not"
    )


def run(parsed: argparse.Namespace) -> int:
    """Measures and prints a table."""
    sys.stdout.write(
        "| processes | one message, us: median job (least, most) | empty job of 1 step, us |\n"
        "|---|---|---|\n"
    )
    for processes in parsed.processes:
        with slice_of(processes) as leader:
            sending = [
                send(leader, parsed.steps, parsed.step_milliseconds / 1000)
                for _ in range(parsed.jobs + 1)
            ][1:]
            empty = [whole(leader) for _ in range(parsed.steps)]
        low, middle, high = (1e6 * f(sending) for f in (min, statistics.median, max))
        sys.stdout.write(
            f"| {processes} | {middle:.0f} ({low:.0f}, {high:.0f}) "
            f"| {1e6 * statistics.median(empty):.0f} |\n"
        )
        sys.stdout.flush()
    return 0


@contextlib.contextmanager
def slice_of(processes: int) -> Iterator[Leader]:
    """Process 0 of so many that follow it."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    followers = [
        subprocess.Popen(
            [sys.executable, "-c", FOLLOWER, str(port), str(processes), str(number)],
            cwd=pathlib.Path(__file__).parents[1],
        )
        for number in range(1, processes)
    ]
    try:
        leader = join_at(port, processes, 0)
        assert isinstance(leader, Leader)
        yield leader
        leader.close()
    finally:
        for follower in followers:
            follower.wait(30)


def send(leader: Leader, steps: int, rest_seconds: float) -> float:
    """Seconds that sending a message takes, on average over a job."""
    run_in_step(leader, {"steps": steps, "rest_seconds": rest_seconds}, make)
    return leader.seconds / leader.messages


def whole(leader: Leader) -> float:
    """Seconds from the message that begins a job of one step until all have left it."""
    began = time.perf_counter()
    run_in_step(leader, {"steps": 1, "rest_seconds": 0}, make)
    return time.perf_counter() - began


def make(task: dict[str, Any], should_stop: Callable[[], bool]) -> None:
    """A job: its steps take time, and do nothing."""
    for _ in range(task["steps"]):
        time.sleep(task["rest_seconds"])
        should_stop()


def join_at(port: int, processes: int, number: int) -> Lockstep:
    """This process among those on a port of this machine."""
    group = ProcessGroup(num_processes=processes, process_id=number, host="127.0.0.1", port=port)
    process, _ = join(
        group,
        lambda: SAME,
        on_lost=lambda _: os._exit(1),
        on_stop=lambda: os._exit(0),
        join_seconds=120,
    )
    process.loaded()
    return process


def follow(port: str, processes: str, number: str) -> None:
    """A process that goes on as long as it is told to."""
    process = join_at(int(port), int(processes), int(number))
    while True:
        run_in_step(process, None, make)
