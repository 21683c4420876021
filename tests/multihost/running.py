"""Several processes of the service, each brought back when it ends, as systemd does."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx

from tests.server.running import ROOT, RunningServer, wait_for

RESTART_SECONDS = 0.5
"""The unit file's RestartSec, shorter."""

RESTART_PATIENCE_SECONDS = 500
"""For a job through a restart with the real engine, on two cores that have other work."""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def clean_environment(**variables):
    """This process's environment without what would change a server."""
    names = ("WAN_TPU_", "XLA_FLAGS", "JAX_PLATFORMS")
    keep = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    return {**keep, **variables, "PYTHONPATH": str(ROOT)}


class Supervised:
    """One process that is started again whenever it ends."""

    def __init__(self, log_path, environment, *, again=True):
        self.log_path = log_path
        self.environment = environment
        self.again = again
        self.statuses = []
        self.process = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()
        wait_for(lambda: self.process is not None)

    def _supervise(self):
        while True:
            with self.log_path.open("ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "server"],
                    cwd=ROOT,
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                )
            status = self.process.wait()
            self.statuses.append(status)
            if not self.again:
                return
            time.sleep(RESTART_SECONDS)

    def send(self, number):
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def log(self):
        return self.log_path.read_text()

    def end(self):
        self.again = False
        while self._thread.is_alive():
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self._thread.join(0.2)


class Slice(RunningServer):
    """A service over several processes; settings as keyword arguments, without their prefix.

    Args:
        data_dir: of process 0, and for logs.
        num_processes: how many there are.
        of_process: settings of single ones, by number.
        started: which of them are started.
        again: whether they are started again when they end.
        environment: further variables of all.
    """

    def __init__(
        self,
        data_dir,
        num_processes,
        *,
        of_process=None,
        started=None,
        again=True,
        environment=None,
        **settings,
    ):
        self.data_dir = data_dir
        data_dir.mkdir(parents=True, exist_ok=True)
        self.coordinator = f"127.0.0.1:{free_port()}"
        self.members = {}
        self._common = {
            "port": free_port(),
            "min_free_bytes": 0,
            "coordinator": self.coordinator,
            "processes": num_processes,
            **settings,
        }
        self._of_process = of_process or {}
        self._again = again
        self._environment = environment or {}
        for number in range(num_processes) if started is None else started:
            self.start_process(number)
        self.url = f"http://127.0.0.1:{self._common['port']}"
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def start_process(self, number):
        """Starts one that was left out so far."""
        values = {
            "data_dir": self.data_dir if number == 0 else "/nonexistent/follower",
            "process_id": number,
            **self._common,
            **self._of_process.get(number, {}),
        }
        variables = {f"WAN_TPU_{name.upper()}": str(value) for name, value in values.items()}
        self.members[number] = Supervised(
            self.data_dir.parent / f"process{number}.log",
            clean_environment(**variables, **self._environment),
            again=self._again,
        )

    @property
    def process(self):
        return self.members[0].process

    def pids(self):
        return [member.process.pid for member in self.members.values()]

    def log(self, number=0):
        return self.members[number].log()

    def wait_log(self, words, number=0):
        """Waits until a process has said something."""
        wait_for(lambda: words in self.log(number))

    def ask(self, path):
        """What process 0 answers; None while it does not."""
        with contextlib.suppress(httpx.TransportError):
            return self.client.get(path)
        return None

    def wait_ready(self):
        wait_for(
            lambda: (r := self.ask("/readyz")) is not None and r.status_code == 200,
            RESTART_PATIENCE_SECONDS,
        )
        return self

    def retrieve_later(self, video):
        """The object, as soon as somebody answers."""
        response = wait_for(lambda: self.ask(f"/v1/videos/{video['id']}"))
        assert response.status_code == 200, response.text
        return response.json()

    def finish(self, video):
        """The object at its end, through restarts."""
        return wait_for(
            lambda: (
                (now := self.retrieve_later(video))["status"] in ("completed", "failed") and now
            ),
            RESTART_PATIENCE_SECONDS,
        )

    def statuses(self, number):
        """How a process has ended so far."""
        return self.members[number].statuses

    def wait_ended(self, number, times=1):
        wait_for(lambda: len(self.statuses(number)) >= times)
        return self.statuses(number)[:times]

    def stop(self):
        self.client.close()
        for member in self.members.values():
            member.again = False
            member.send(signal.SIGCONT)
        for member in self.members.values():
            member.end()
