"""Starts real servers as real processes and talks to them over real HTTP."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import httpx
import psutil

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTED = "tests.server.scripted_engine:ScriptedEngine"
PATIENCE_SECONDS = 180
"""Before a test gives up waiting; nothing is measured by it."""


class RunningServer:
    """One `python -m server`; settings as keyword arguments, without their prefix."""

    module = "server"

    def __init__(self, data_dir, *, environment=None, **settings):
        self.data_dir = data_dir
        # Beside the data folder: a server refuses one that holds other things.
        self.log_path = data_dir.with_name(f"{data_dir.name}.log")
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        keep = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("WAN_TPU_", "XLA_FLAGS", "JAX_PLATFORMS"))
        }
        settings = {"port": 0, "data_dir": data_dir, "min_free_bytes": 0, **settings}
        self.environment = {
            **keep,
            **{f"WAN_TPU_{name.upper()}": str(value) for name, value in settings.items()},
            **(environment or {}),
            "PYTHONPATH": str(ROOT),
        }
        self.client = None
        self.start()

    def start(self):
        """Starts it, again with the same data if it was ended, and waits until it listens."""
        begin = self.log_path.stat().st_size if self.log_path.exists() else 0
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.module], cwd=ROOT, env=self.environment, stderr=log
            )
        match = wait_for(
            lambda: (
                re.search(r"running on (http://\S+)", self.log()[begin:])
                or self.process.poll() is not None
            )
        )
        assert not isinstance(match, bool), f"the server did not start:\n{self.log()[begin:]}"
        self.url = match[1]
        if self.client is not None:
            self.client.close()
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def log(self):
        return self.log_path.read_text() if self.log_path.exists() else ""

    def wait_ready(self):
        wait_for(lambda: self.client.get("/readyz").status_code == 200)
        return self

    def create(self, prompt="a red circle moving right on a black background", **fields):
        response = self.client.post("/v1/videos", json={"prompt": prompt, **fields})
        assert response.status_code == 200, response.text
        return response.json()

    def retrieve(self, video):
        response = self.client.get(f"/v1/videos/{video['id']}")
        assert response.status_code == 200, response.text
        return response.json()

    def wait_until(self, video, *statuses):
        """The object once its status is one of these."""
        return wait_for(lambda: (now := self.retrieve(video))["status"] in statuses and now)

    def finish(self, video):
        return self.wait_until(video, "completed", "failed")

    def wait_step(self, video, step):
        """The object once so many denoising steps are done."""

        def reached():
            now = self.retrieve(video)
            assert now["status"] in ("queued", "in_progress"), now
            return now["stage"] == "denoise" and now["step"] >= step and now

        return wait_for(reached)

    def events(self, video):
        """(event, data) of a stream until it ends."""
        with self.client.stream("GET", f"/v1/videos/{video['id']}/events") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            name = None
            for line in response.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    yield name, json.loads(line.removeprefix("data: "))

    def metric(self, name):
        """The value of a meter, with its labels as Prometheus writes them; 0 if it is not there."""
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def engine_pids(self):
        """Processes of the engine that are alive."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):  # it may end while we look
                    found += [child.pid] if "server.engine.process" in child.cmdline() else []
        return found

    def open_sockets(self):
        """Connections that the server holds."""
        connections = psutil.Process(self.process.pid).net_connections("inet")
        return [c for c in connections if c.status == psutil.CONN_ESTABLISHED]

    def cpu_seconds(self):
        """Processor seconds of the server so far, its engine not counted."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def kill(self):
        """As the kernel does, without a word."""
        self.process.kill()
        self.process.wait()

    def terminate(self):
        """As an operator does; returns at once."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self):
        if self.client is not None:
            self.client.close()
        if self.process.poll() is None:
            self.kill()


def wait_for(condition, seconds=PATIENCE_SECONDS):
    """The first true value of `condition()`."""
    begin = time.monotonic()
    while True:
        value = condition()
        if value:
            return value
        waited = time.monotonic() - begin
        assert waited < seconds, "waited in vain"
        # Asking fifty times a second takes a quarter of a core from what is waited for.
        time.sleep(min(0.1, max(0.02, 0.02 * waited)))
