"""Stopping is clean at every moment: the job goes back uncounted, nothing is left, the code is 0.

Real processes; each case starts its own server. The moments are made by what holds them open: an
engine that loads for ever, a database that another program has locked, a job of many steps.
"""

import os
import pathlib
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import psutil
import pytest

from tests.server.running import wait_for

pytestmark = pytest.mark.usefixtures("heeds_hangups")

LONG = {"num_inference_steps": 90}
"""Eighteen seconds with `slow` in the prompt."""

SIGNALS = {
    "TERM": [signal.SIGTERM],
    "HUP": [signal.SIGHUP],
    "TERM TERM": [signal.SIGTERM, signal.SIGTERM],
    "INT INT": [signal.SIGINT, signal.SIGINT],
    "INT TERM": [signal.SIGINT, signal.SIGTERM],
    "HUP HUP TERM": [signal.SIGHUP, signal.SIGHUP, signal.SIGTERM],
}


class Moments:
    """A server at one moment of its life, and all the processes that belong to it."""

    def __init__(self, server, marks):
        self.server = server
        self.marks = marks
        self.video = None
        self.pause = 0.3

    def loading(self):
        """The engine's process runs and is not ready; a job waits."""
        self.video = self.server.create("slow", **LONG)
        wait_for(lambda: "loading the model" in self.server.client.get("/readyz").text)

    def spawn(self):
        """The service listens, and its engine may or may not be there yet."""
        self.pause = 0.0

    def step(self):
        """In the middle of a job."""
        self.server.wait_ready()
        self.video = self.server.create("slow", **LONG)
        self.server.wait_step(self.video, 2)

    def hang(self):
        """In a job at which the engine hangs."""
        self.server.wait_ready()
        self.video = self.server.create("hang", **LONG)
        self.server.wait_step(self.video, 1)

    def idle(self):
        """Ready, with nothing to do."""
        self.server.wait_ready()

    def claim(self):
        """The transaction that starts a job waits for a lock on the database."""
        self.loading()
        self._lock_for(2.0)
        (self.marks / "slow-start").unlink()
        wait_for(lambda: self.server.log().count("the engine is ready") == 1)

    def complete(self):
        """The transaction that completes a job waits for a lock on the database."""
        self.server.wait_ready()
        self.video = self.server.create("slow", num_inference_steps=4)
        self.server.wait_step(self.video, 3)
        self._lock_for(2.0)
        folder = self.server.data_dir / "videos" / self.video["id"]
        wait_for(folder.exists)

    def _lock_for(self, seconds):
        lock = sqlite3.connect(
            self.server.data_dir / "jobs.sqlite", isolation_level=None, check_same_thread=False
        )
        lock.execute("BEGIN IMMEDIATE")

        def release():
            lock.execute("ROLLBACK")
            lock.close()

        threading.Timer(seconds, release).start()


@pytest.fixture
def at(start_server, tmp_path):
    """Brings a new server to a moment."""

    def bring(moment, **settings):
        if moment in ("loading", "claim"):
            (tmp_path / "slow-start").touch()
        environment = {"SCRIPTED_ENGINE_MARKS": str(tmp_path)}
        server = start_server(max_attempts=1, environment=environment, **settings)
        moments = Moments(server, tmp_path)
        getattr(moments, moment)()
        return moments

    return bring


def family(pid):
    """A process and all that belong to it, ffmpeg too."""
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]


def row(server, video):
    with sqlite3.connect(server.data_dir / "jobs.sqlite") as database:
        found = database.execute(
            "SELECT state, attempts, error_code FROM jobs WHERE id = ?", [video["id"]]
        ).fetchone()
    database.close()
    return found


def end(server, numbers, pause):
    """Sends signals, and checks that the end is clean; returns the seconds it took."""
    everybody = family(server.process.pid)
    began = time.monotonic()
    for number in numbers:
        server.process.send_signal(number)
        time.sleep(pause)
    assert server.process.wait(60) == 0, server.log()
    seconds = time.monotonic() - began
    _, alive = psutil.wait_procs(everybody, timeout=10)
    assert not alive, alive
    log = server.log()
    for bad in ("Traceback", "AssertionError", "never retrieved", "level=critical"):
        assert bad not in log, log
    return seconds


@pytest.mark.parametrize(
    ("moment", "signals"),
    [
        ("step", "TERM TERM"),
        ("step", "INT INT"),
        ("step", "INT TERM"),
        ("step", "HUP HUP TERM"),
        ("loading", "TERM TERM"),
        ("loading", "INT INT"),
        ("spawn", "TERM TERM"),
        ("spawn", "HUP HUP TERM"),
        ("idle", "INT INT"),
        ("hang", "TERM TERM"),
    ],
)
def test_a_second_signal_ends_it_at_once_and_the_job_goes_back(at, moment, signals):
    found = at(moment)
    seconds = end(found.server, SIGNALS[signals], found.pause)
    assert seconds < 20, "the grace is 30 s"
    if found.video is not None:
        assert row(found.server, found.video) == ("queued", 0, None)


@pytest.mark.parametrize("signals", ["TERM", "TERM TERM"])
def test_a_claim_under_way_is_taken_back(at, signals):
    """One signal is enough to end it: nothing runs, so there is nothing to wait for."""
    found = at("claim")
    end(found.server, SIGNALS[signals], found.pause)
    state, attempts, code = row(found.server, found.video)
    assert (state, attempts, code) == ("queued", 0, None)


@pytest.mark.parametrize("signals", ["HUP", "TERM TERM"])
def test_a_video_whose_files_are_in_place_is_completed(at, signals):
    found = at("complete")
    end(found.server, SIGNALS[signals], found.pause)
    assert row(found.server, found.video) == ("completed", 1, None)


def test_sighup_drains(at):
    found = at("step", drain_seconds=1)
    began = time.monotonic()
    end(found.server, [signal.SIGHUP], 0)
    assert time.monotonic() - began >= 1, "the running job had its grace"
    assert row(found.server, found.video) == ("queued", 0, None)


def test_an_engine_that_is_killed_while_the_server_drains(at):
    """As a supervisor that signals the whole group of processes does: the job is not to blame."""
    found = at("step")
    (engine,) = found.server.engine_pids()
    found.server.terminate()
    wait_for(lambda: "draining" in found.server.log())
    os.kill(engine, signal.SIGKILL)
    assert found.server.process.wait(30) == 0
    assert row(found.server, found.video) == ("queued", 0, None)


def test_a_stopped_engine_does_not_hold_the_end_up(at):
    found = at("step")
    (engine,) = found.server.engine_pids()
    os.kill(engine, signal.SIGSTOP)
    end(found.server, SIGNALS["TERM TERM"], 0.3)
    assert row(found.server, found.video) == ("queued", 0, None)


@pytest.mark.parametrize("moment", ["loading", "spawn", "step"])
def test_no_process_is_left_by_a_killed_server(at, moment):
    found = at(moment)
    everybody = family(found.server.process.pid)
    found.server.kill()
    _, alive = psutil.wait_procs(everybody, timeout=10)
    assert not alive, alive


def test_an_ignored_sighup_stays_ignored(start_server, tmp_path):
    """`nohup python -m server`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = start_server().wait_ready()
    finally:
        signal.signal(signal.SIGHUP, before)
    server.process.send_signal(signal.SIGHUP)
    video = server.create(num_inference_steps=2)
    assert server.finish(video)["status"] == "completed"
    assert "draining" not in server.log()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_before_it_serves(start_server, number):
    """While the database is opened, which a lock holds up."""
    server = start_server()
    server.kill()
    lock = sqlite3.connect(server.data_dir / "jobs.sqlite", isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    process = subprocess.Popen(
        [sys.executable, "-m", "server"],
        cwd=pathlib.Path(__file__).parents[3],
        env=server.environment,
        stderr=subprocess.PIPE,
    )
    listening = psutil.Process(process.pid)
    wait_for(lambda: any(c.status == "LISTEN" for c in listening.net_connections("inet")))
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    lock.close()
    assert process.returncode == 0, errors
    assert b"before it served" in errors
    assert b"Traceback" not in errors
