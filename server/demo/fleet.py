"""A whole fleet on this machine: `python -m server.demo.fleet`, or `make fleet-demo`.

Starts PostgreSQL, Temporal's server, an S3 store, one API and slices of wan-tiny, each a process of
its own on loopback; has videos made by all slices, says which made which, and leaves the page open
until Ctrl-C. Nothing stays behind.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from server.demo.backing import S3, Backing, BackingError, PostgreSQL, Temporal, free_ports
from server.signals import ending_signals

PROMPTS = tuple(
    f"a {color} {shape} moving {way} on a black background"
    for color, shape, way in (
        ("red", "circle", "right"),
        ("yellow", "square", "down"),
        ("green", "triangle", "left"),
        ("white", "circle", "up"),
        ("blue", "square", "right"),
        ("purple", "triangle", "down"),
    )
)
READY_SECONDS = 300.0


class Fleet:
    """The processes of one fleet.

    Attributes:
        url: of the API.
        environment: what a server of it needs beside its role.
        servers: the APIs and slices that were started.
    """

    def __init__(self, folder: pathlib.Path, *, with_page: bool = True):
        """Starts nothing.

        Args:
            folder: for what the servers keep and say; private.
            with_page: whether Temporal has its page.

        Raises:
            BackingError: a program is missing.
        """
        self._folder = folder
        self._opened = contextlib.ExitStack()
        self.postgres = self._opened.enter_context(contextlib.closing(PostgreSQL()))
        self.temporal = self._opened.enter_context(
            contextlib.closing(Temporal(with_page=with_page))
        )
        self.s3 = self._opened.enter_context(contextlib.closing(S3()))
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("WAN_TPU_", "AWS_"))},
            **self.s3.environment,
            "WAN_TPU_FLEET": f"temporal://{self.temporal.address}/default",
            "WAN_TPU_FILES": self.s3.url,
            "WAN_TPU_MIN_FREE_BYTES": "0",
        }
        self.url = ""
        self.servers: list[subprocess.Popen[bytes]] = []

    @property
    def backing(self) -> tuple[Backing, ...]:
        """The servers behind it, in the order in which they are started."""
        return (self.postgres, self.temporal, self.s3)

    def add_api(self, port: int) -> subprocess.Popen[bytes]:
        """Starts an API; the last one is where `url` leads."""
        self.url = f"http://127.0.0.1:{port}"
        environment = {"PORT": str(port), "DATABASE_URL": self.postgres.url}
        return self._serve("api", f"api-{port}", environment)

    def add_slice(self, name: str, **settings: str) -> subprocess.Popen[bytes]:
        """Starts a slice.

        Args:
            name: of the slice.
            settings: more of them, without their prefix.
        """
        given = {name.upper(): value for name, value in settings.items()}
        return self._serve("slice", name, {"PORT": "0", "SLICE_NAME": name, **given})

    def last_words(self) -> str:
        """What the APIs and slices said last."""
        logs = sorted(self._folder.glob("*.log"))
        return "".join(f"{path.stem}: {path.read_text()[-1500:]}\n" for path in logs)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The API's answer.

        Raises:
            OSError: it does not answer, or refuses.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data=data)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def close(self) -> None:
        """Ends everything."""
        for server in self.servers:
            server.send_signal(signal.SIGTERM)
        for server in self.servers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(30)
            server.kill()
            server.wait()
        self._opened.close()

    def _serve(self, role: str, name: str, given: dict[str, str]) -> subprocess.Popen[bytes]:
        settings = {"ROLE": role, "DATA_DIR": str(self._folder / name), **given}
        environment = self.environment | {f"WAN_TPU_{k}": v for k, v in settings.items()}
        with (self._folder / f"{name}.log").open("ab") as log:
            # A group of its own: Ctrl-C is for the demo, which then ends all in order.
            server = subprocess.Popen(
                [sys.executable, "-m", "server"],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.servers.append(server)
        return server


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m server.demo.fleet", description=__doc__)
    parser.add_argument("--slices", type=int, default=2, metavar="N", help="how many (default: 2)")
    parser.add_argument("--port", type=int, default=8000, help="of the page (default: 8000)")
    parser.add_argument("--once", action="store_true", help="end when the videos are made")
    parsed = parser.parse_args(arguments)
    if not 1 <= parsed.slices <= 16:
        parser.error(f"--slices is {parsed.slices}; expected 1 to 16, for example 2")
    for number in ending_signals():
        signal.signal(number, _end)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="wan-tpu-fleet-"))
    try:
        with contextlib.closing(Fleet(folder)) as fleet:
            _show(fleet, parsed.slices, parsed.port, once=parsed.once)
    except BackingError as error:
        _say(f"fleet-demo: {error}")
        return 1
    except KeyboardInterrupt:
        _say("\nended before all was shown; nothing stays behind")
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _end(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_IGN)  # once is enough: what is under way is its end
    raise KeyboardInterrupt


def _show(fleet: Fleet, slices: int, port: int, *, once: bool) -> None:
    for backing in fleet.backing:
        began = time.monotonic()
        backing.start()
        _say(f"{type(backing).__name__:<12}ready after {time.monotonic() - began:.1f} s")
    fleet.add_api(_free(port))
    for number in range(1, slices + 1):
        fleet.add_slice(f"slice-{number}")
    began = time.monotonic()
    _wait(fleet, lambda: len(_ready(fleet)) == slices)
    _say(f"{'API':<12}and {slices} slices of wan-tiny ready after {time.monotonic() - began:.0f} s")
    _say(f"\n  the page          {fleet.url}")
    _say(f"  Temporal's page   {fleet.temporal.page}\n")
    videos = [fleet.ask("/v1/videos", {"prompt": prompt}) for prompt in PROMPTS]
    left = {video["id"]: video["prompt"] for video in videos}
    while left:
        for job_id in list(left):
            now = fleet.ask(f"/v1/videos/{job_id}")
            if now["status"] in ("completed", "failed"):
                by = now["metadata"].get("slice", "nobody")
                _say(f"{now['status']:<12}by {by}: {left.pop(job_id)}")
        time.sleep(0.2)
    if not once:
        _say("\nMake more on the page. Ctrl-C ends everything.")
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()
        _say("\nending")


def _ready(fleet: Fleet) -> list[str]:
    try:
        slices = fleet.ask("/v1/slices")["data"]
    except OSError:
        return []
    return [each["id"] for each in slices if each["state"] in ("ready", "busy")]


def _wait(fleet: Fleet, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        has_ended = any(server.poll() is not None for server in fleet.servers)
        if has_ended or time.monotonic() > deadline:
            raise BackingError(f"a server ended, or none is ready:\n{fleet.last_words()}")
        time.sleep(0.2)


def _free(port: int) -> int:
    """The port, or another one where somebody has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return free_ports(1)[0]
    return port


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
