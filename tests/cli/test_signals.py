"""Signals end a run cleanly: one line, exit code 130, no file, whichever and however many come."""

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import time

import psutil
import pytest

from tests.cli.conftest import COMMAND

pytestmark = [pytest.mark.timeout(240), pytest.mark.usefixtures("heeds_hangups")]
PROMPT = "a red circle moving right on a black background"


@pytest.fixture
def start(environment, tmp_path):
    """Starts a long generation, and waits until it says `mark`."""
    started = []

    def start(mark, *before, stderr=subprocess.PIPE, reads=None):
        process = subprocess.Popen(
            [*before, *COMMAND, "generate", PROMPT, "--steps", "1000", "-o", "out.mp4"],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            cwd=tmp_path,
            env=environment,
            start_new_session=True,
        )
        started.append(process)
        seen = b""
        while mark not in seen:
            chunk = os.read(process.stderr.fileno() if reads is None else reads, 4096)
            assert chunk, f"ended before {mark!r}: {seen!r}"
            seen += chunk
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


def what_is_left(folder):
    """Files there once no process works there: an orphaned ffmpeg completes what it was given."""
    while True:
        if not any(_works_in(process, folder) for process in psutil.process_iter()):
            return sorted(path.name for path in folder.iterdir())
        time.sleep(0.05)


def _works_in(process, folder):
    try:
        return process.cwd() == str(folder)
    except psutil.Error:
        return False


@pytest.mark.parametrize(
    ("name", "after"),
    [("SIGINT", "start"), ("SIGINT", "step"), ("SIGTERM", "step"), ("SIGHUP", "step")],
)
def test_a_signal_leaves_no_file(start, tmp_path, name, after):
    """In the middle of the steps, and while the program still loads or compiles."""
    process = start(b"denoise" if after == "step" else b"load")
    if after == "start":
        time.sleep(1)
    os.killpg(process.pid, signal.Signals[name])
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130, rest
    assert b"Traceback" not in rest
    assert rest.decode().rstrip().endswith("wan-tpu: interrupted")
    assert not what_is_left(tmp_path)


def test_a_second_signal_does_not_wait_and_leaves_nothing_either(start, tmp_path):
    process = start(b"denoise")
    process.send_signal(signal.SIGSTOP)  # both wait for it now
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 130, rest
    assert b"Traceback" not in rest
    assert rest.count(b"interrupted") == 1
    assert not what_is_left(tmp_path)


def test_a_terminal_that_closes_leaves_no_file(start, tmp_path):
    """The hang-up comes with a standard error that can no longer be written."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    process = start(b"denoise", stderr=theirs, reads=ours)
    os.close(theirs)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=60) == 130
    assert not what_is_left(tmp_path)


def test_nohup_is_heeded(start, tmp_path):
    """What was told to ignore the hang-up goes on; SIGTERM ends it all the same."""
    process = start(b"denoise", "sh", "-c", 'trap "" HUP; exec "$@"', "sh")
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 130
    assert not what_is_left(tmp_path)
