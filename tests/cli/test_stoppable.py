"""A first signal lets a training save and end; Ctrl-C after it ends it at once."""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("heeds_hangups")

WORK = """
import sys, time
from tests.training.lines import step_line
from wan_tpu.cli.stoppable import Stoppable
from wan_tpu.cli.train_run import _note
from wan_tpu.multihost.lockstep import Alone
from wan_tpu.training.metrics import Started
begins = Started(step=0, steps=9, time=0.0, settings={})
save_seconds, has_something, leads = float(sys.argv[1]), sys.argv[2] == "yes", sys.argv[3] == "yes"
running = Stoppable(leads=leads)
running.before_interrupt(lambda: print("told the others", flush=True), grace_seconds=0.3)

def work():
    _note(step_line(1) if has_something else begins, Alone(), running)
    print("begun", flush=True)
    while not (running.is_asked() and leads):
        time.sleep(0.01)
    print("saves", flush=True)
    time.sleep(save_seconds)
    print("saved", flush=True)

running.run(work)
sys.exit(running.exit_code)
"""


@pytest.fixture
def start():
    started = []

    def start(save_seconds, *, has_something="yes", leads="yes"):
        process = subprocess.Popen(
            [sys.executable, "-c", WORK, str(save_seconds), has_something, leads],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout.readline() == "begun\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75), ("SIGHUP", 130)])
def test_one_signal_lets_it_save(start, name, code):
    """Saving takes longer than what `generate` would wait."""
    process = start(1.0)
    os.kill(process.pid, signal.Signals[name])
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "saves\nsaved\n")
    assert error == "wan-tpu: stops after this step and saves; Ctrl-C now ends it at once\n"


@pytest.mark.parametrize("first", ["SIGINT", "SIGTERM"])
def test_ctrl_c_after_a_signal_ends_it_at_once(start, first):
    process = start(60)
    os.kill(process.pid, signal.Signals[first])
    assert process.stdout.readline() == "saves\n"
    os.kill(process.pid, signal.SIGINT)
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert error.endswith("wan-tpu: interrupted; steps since the last checkpoint are lost\n")


def test_a_second_sigterm_does_not_keep_it_from_saving(start):
    process = start(1.0)
    os.kill(process.pid, signal.SIGTERM)
    assert process.stdout.readline() == "saves\n"
    os.kill(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "saved\n"
    assert process.returncode == 75


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75)])
def test_before_the_first_step_there_is_nothing_to_save(start, name, code):
    """A program that compiles cannot be asked; it is left after a moment."""
    process = start(60, has_something="no", leads="no")
    os.kill(process.pid, signal.Signals[name])
    out, error = process.communicate(timeout=30)
    assert (process.returncode, out, error) == (
        code,
        "told the others\n",
        "wan-tpu: interrupted\n",
    )


def test_a_follower_waits_for_process_0(start):
    process = start(60, leads="no")
    os.kill(process.pid, signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.5)
