"""what many polling clients cost: latency of GET, and how much slower videos are made meanwhile

Starts a server with the settings of the environment on a scratch folder, fills its queue, and makes
videos: alone, while a server that does nothing is polled as much (what the load itself takes of the
machine), and while the server is polled, in turns. Videos that run across a change are not counted.
"""

import argparse
import collections
import contextlib
import dataclasses
import http.client
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Any

import psutil

from wan_tpu.cli.options import positive_int
from wan_tpu.errors import OutputError

CONDITIONS = ("alone", "null polled", "polled")
FINISHED = ("completed", "failed")
LIST_PATH = "/v1/videos?limit=20"
LOOK_SECONDS = 0.25
SETTLE_SECONDS = 1.0
"""For the clients to connect, and to poll a few times even where videos take no time."""
START_SECONDS = 600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m benchmarks service`."""
    parser.add_argument(
        "--jobs", type=positive_int, default=500, help="that wait (default: %(default)s)"
    )
    parser.add_argument(
        "--clients", type=positive_int, default=50, help="that poll (default: %(default)s)"
    )
    parser.add_argument(
        "--hertz", type=float, default=10, help="polls a second of each (default: %(default)s)"
    )
    parser.add_argument(
        "--steps",
        type=positive_int,
        default=100,
        help="of a video: it should take seconds (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats", type=positive_int, default=5, help="turns (default: %(default)s)"
    )
    parser.add_argument(
        "--videos", type=positive_int, default=2, help="in each turn (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="PATH", help="write every figure to this file")


def run(parsed: argparse.Namespace) -> int:
    """Measures and reports; 1 if any poll failed."""
    from wan_tpu.pipeline.whole_file import write_json_atomically

    with tempfile.TemporaryDirectory(prefix="wan-tpu-service-") as folder:
        with running_server(pathlib.Path(folder)) as server:
            turns = measure(parsed, server)
        ready = server.ready_seconds
    if parsed.json is not None:
        figures = {"ready_seconds": ready, "turns": [dataclasses.asdict(turn) for turn in turns]}
        write_json_atomically(pathlib.Path(parsed.json), figures)
    sys.stdout.write(format_report(parsed, ready, turns))
    errors = [error for turn in turns for error in turn.errors]
    for error, times in collections.Counter(errors).most_common():
        sys.stderr.write(f"{times} x {error}\n")
    return 1 if errors else 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Some videos made under one condition; seconds are wall clock.

    Attributes:
        condition: one of `CONDITIONS`.
        video_seconds: of each video, over all its stages, as the engine reports them.
        from_due: of each poll, from when it was due to its whole answer.
        from_sending: the same from when it was sent: less what the load generator itself was late.
        errors: of polls.
        server_share: processor seconds of the server, without its engine, per second.
        load_share: the same of the load generator.
    """

    condition: str
    video_seconds: tuple[float, ...]
    from_due: tuple[float, ...] = ()
    from_sending: tuple[float, ...] = ()
    errors: tuple[str, ...] = ()
    server_share: float
    load_share: float = 0.0


class Server:
    """A server under measurement, and the one connection that watches it."""

    def __init__(self, port: int, process: "subprocess.Popen[bytes]", ready_seconds: float):
        self.port = port
        self.process = process
        self.ready_seconds = ready_seconds
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        """Status and JSON."""
        headers = {"Content-Type": "application/json"}
        text = None if body is None else json.dumps(body)
        try:
            self._connection.request(method, path, text, headers)
            answer = self._connection.getresponse()
        except (http.client.RemoteDisconnected, ConnectionError):  # idle for too long
            self._connection.close()
            self._connection.request(method, path, text, headers)
            answer = self._connection.getresponse()
        return answer.status, json.loads(answer.read())

    def create(self, index: int, num_steps: int) -> str:
        """A job of the default size and length; returns its id."""
        body = {
            "prompt": "a red circle moving right on a black background",
            "seed": index,
            "num_inference_steps": num_steps,
        }
        status, video = self.ask("POST", "/v1/videos", body)
        if status != 200:
            raise OutputError(f"job {index} was not taken: {video['error']['message']}")
        return video["id"]

    def wait_until_finished(self, job_id: str) -> float:
        """Seconds that its video took, over all stages."""
        while True:
            _, video = self.ask("GET", f"/v1/videos/{job_id}")
            if video["status"] == "failed":
                raise OutputError(f"{job_id} failed: {video['error']['message']}")
            if video["status"] == "completed":
                return sum(video["metadata"]["seconds"].values())
            time.sleep(LOOK_SECONDS)

    def close(self) -> None:
        """Ends the connection that watches it."""
        self._connection.close()

    def cpu_seconds(self) -> float:
        """Processor seconds of the server so far, its engine not counted."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system


@contextlib.contextmanager
def running_server(folder: pathlib.Path) -> Iterator[Server]:
    """A server with the settings of the environment, ready, on a folder and port of its own.

    Raises:
        OutputError: it does not become ready.
    """
    settings = {
        "WAN_TPU_PORT": "0",
        "WAN_TPU_DATA_DIR": str(folder / "data"),
        "WAN_TPU_MIN_FREE_BYTES": "0",
        "WAN_TPU_MAX_WORK": "1000",
        "WAN_TPU_MAX_QUEUED_JOBS": "100000",
        "WAN_TPU_MAX_QUEUED_JOBS_PER_KEY": "100000",
        "WAN_TPU_MAX_REQUESTS_PER_SECOND": "100000",
    }
    begun = time.monotonic()
    log_path = folder / "server.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "server"], env={**os.environ, **settings}, stderr=log
        )
    try:
        port = _wait_for_port(process, log_path)
        server = Server(port, process, 0.0)
        while server.ask("GET", "/readyz")[0] != 200:
            _check_start(process, log_path, begun)
            time.sleep(LOOK_SECONDS)
        server.ready_seconds = time.monotonic() - begun
        yield server
        server.close()
    finally:
        process.kill()
        process.wait()


def _wait_for_port(process: "subprocess.Popen[bytes]", log_path: pathlib.Path) -> int:
    begun = time.monotonic()
    while True:
        match = re.search(r"running on http://[^:]+:(\d+)", log_path.read_text())
        if match:
            return int(match[1])
        _check_start(process, log_path, begun)
        time.sleep(LOOK_SECONDS)


def _check_start(process: "subprocess.Popen[bytes]", path: pathlib.Path, begun: float) -> None:
    if process.poll() is not None or time.monotonic() - begun > START_SECONDS:
        raise OutputError("the server did not start; its log ends: " + path.read_text()[-500:])


class Load:
    """A process of many clients, on while the block is entered."""

    def __init__(self, process: "subprocess.Popen[str]"):
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin: IO[str] = process.stdin
        self._stdout: IO[str] = process.stdout
        self.result: dict[str, Any] = {}

    @contextlib.contextmanager
    def polling(self, paths: list[str]) -> Iterator[None]:
        """Polls these paths; afterwards `result` holds what was seen."""
        self._say(json.dumps(paths))
        try:
            yield
        finally:
            self._say("")
            self.result = json.loads(self._stdout.readline())

    def _say(self, line: str) -> None:
        self._stdin.write(line + "\n")
        self._stdin.flush()


@contextlib.contextmanager
def polling_process(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """A process of `benchmarks.polling`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.polling", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def measure(parsed: argparse.Namespace, server: Server) -> list[Turn]:
    """Every turn, in the order in which they were taken."""
    per_turn = parsed.videos + 1
    num_jobs = parsed.jobs + len(CONDITIONS) * parsed.repeats * per_turn
    sys.stderr.write(f"queueing {num_jobs} jobs\n")
    queue = [server.create(index, parsed.steps) for index in range(num_jobs)]
    _, sample = server.ask("GET", f"/v1/videos/{queue[-1]}")
    with contextlib.ExitStack() as stack:
        null = stack.enter_context(polling_process("null", str(len(json.dumps(sample)))))
        assert null.stdout is not None
        null_port = int(null.stdout.readline())
        loads = {}
        for condition, port in (("null polled", null_port), ("polled", server.port)):
            numbers = (str(port), str(parsed.clients), str(parsed.hertz))
            process = stack.enter_context(polling_process("poll", "127.0.0.1", *numbers))
            loads[condition] = Load(process)
        turns = []
        for repeat in range(parsed.repeats):
            # Every other round backwards: a machine that slowly changes favours none.
            for condition in CONDITIONS if repeat % 2 == 0 else CONDITIONS[::-1]:
                jobs, queue = queue[:per_turn], queue[per_turn:]
                paths = [LIST_PATH] * parsed.clients + [f"/v1/videos/{i}" for i in jobs + queue]
                turns.append(_take_turn(condition, server, loads.get(condition), jobs, paths))
                middle = statistics.median(turns[-1].video_seconds)
                sys.stderr.write(f"{condition}: {middle:.3f} s a video\n")
    return turns


def _take_turn(
    condition: str, server: Server, load: Load | None, jobs: list[str], paths: list[str]
) -> Turn:
    """Makes the videos of the jobs; the first one, during which the load begins, is not counted."""
    with load.polling(paths) if load is not None else contextlib.nullcontext():
        time.sleep(SETTLE_SECONDS)
        server.wait_until_finished(jobs[0])
        begun, cpu = time.monotonic(), server.cpu_seconds()
        seconds = tuple(server.wait_until_finished(job) for job in jobs[1:])
        share = (server.cpu_seconds() - cpu) / (time.monotonic() - begun)
    if load is None:
        return Turn(condition=condition, video_seconds=seconds, server_share=share)
    return Turn(
        condition=condition,
        video_seconds=seconds,
        from_due=tuple(load.result["from_due"]),
        from_sending=tuple(load.result["from_sending"]),
        errors=tuple(load.result["errors"]),
        server_share=share,
        load_share=load.result["cpu_seconds"] / load.result["seconds"],
    )


def format_report(parsed: argparse.Namespace, ready: float, turns: list[Turn]) -> str:
    """A line per condition: how long a video takes and what a poll waits."""
    alone = _median_video(turns, "alone")
    lines = [
        f"{parsed.jobs} jobs wait, {parsed.clients} clients poll {parsed.hertz:g} times a second, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; ready after {ready:.1f} s",
        "",
        f"{'condition':<12}{'video s':>9}{'spread':>8}{'slower':>8}{'polls':>8}{'errors':>8}"
        f"{'p50 ms':>8}{'p99 ms':>8}{'max ms':>8}{'p99 sent':>10}{'server':>8}{'load':>7}",
    ]
    for condition in CONDITIONS:
        rows = [turn for turn in turns if turn.condition == condition]
        videos = [seconds for row in rows for seconds in row.video_seconds]
        due = sorted(1000 * seconds for row in rows for seconds in row.from_due)
        sent = sorted(1000 * seconds for row in rows for seconds in row.from_sending)
        slower = 100 * (statistics.median(videos) / alone - 1)
        line = (
            f"{condition:<12}{statistics.median(videos):>9.3f}{max(videos) - min(videos):>8.3f}"
            f"{slower:>7.1f}%{len(due):>8}{sum(len(row.errors) for row in rows):>8}"
        )
        if due:
            line += f"{share_at(due, 0.5):>8.1f}{share_at(due, 0.99):>8.1f}{due[-1]:>8.1f}"
            line += f"{share_at(sent, 0.99):>10.1f}"
        else:
            line += f"{'-':>8}{'-':>8}{'-':>8}{'-':>10}"
        shares = [statistics.mean(getattr(row, name) for row in rows)
                  for name in ("server_share", "load_share")]  # fmt: skip
        lines.append(line + f"{shares[0]:>7.1%}{shares[1]:>7.1%}")
    lines += [
        "",
        "video s: median over all stages, spread largest less smallest; a poll waits from when it "
        "was due",
        "(p99 sent: from when it was sent); server and load: shares of one core, the load "
        "generator's among them",
    ]
    return "\n".join(lines) + "\n"


def _median_video(turns: list[Turn], condition: str) -> float:
    return statistics.median(
        seconds for turn in turns if turn.condition == condition for seconds in turn.video_seconds
    )


def share_at(ordered: list[float], share: float) -> float:
    """The value that this share of an ascending list is below."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
