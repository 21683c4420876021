"""A work of several processes that is asked to save and end: all do so at the same step.

Real processes on loopback, in step as `wan-tpu train` is; the work counts steps, without JAX.
"""

import signal
import subprocess
import sys

import pytest

from tests.multihost.running import free_port

WORK = """
import sys, time
from wan_tpu.cli.in_step import in_step, make_once
from wan_tpu.cli.stoppable import Stoppable
from wan_tpu.multihost.group import find_group
from wan_tpu.multihost.join import agree

coordinator, number = sys.argv[1], int(sys.argv[2])
pace, steps = float(sys.argv[3]), int(sys.argv[4])
group = find_group(coordinator, 3, number)
running = Stoppable(leads=group.leads)

def make(task, should_stop):
    running.has_something()
    for step in range(task["steps"]):
        if should_stop():
            print("saved at", step, flush=True)
            return False
        if step == 3:
            print("begun", flush=True)
        time.sleep(pace)
    print("done", flush=True)
    return True

def work():
    with in_step(group, running) as process:
        agree(process, group, dict)
        running.when_asked(lambda: process.tell_asked("asked"))
        process.loaded()
        finished.append(make_once(
            process, {"steps": steps} if group.leads else {}, make,
            asked=lambda: running.is_asked() or process.others_asked(),
        ))

finished = []
running.run(work)
sys.exit(0 if finished == [True] else running.exit_code)
"""


@pytest.fixture
def start():
    started = []

    def start(*, steps=10_000, paces=(0.01, 0.02, 0.03)):
        coordinator = f"127.0.0.1:{free_port()}"
        processes = [
            subprocess.Popen(
                (sys.executable, "-c", WORK, coordinator, str(number), str(pace), str(steps)),
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for number, pace in enumerate(paces)
        ]  # fmt: skip
        started.extend(processes)
        return processes

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ends(processes):
    """What each has said last, and its exit code."""
    found = [(process.communicate(timeout=60), process.returncode) for process in processes]
    return [(out.splitlines()[-1] if out else error, code) for (out, error), code in found]


@pytest.mark.parametrize("asked", [0, 2])
def test_all_save_at_the_same_step_whoever_is_asked(start, asked):
    """Red when a follower keeps it to itself: it would wait ten minutes for process 0."""
    processes = start()
    for process in processes:
        assert process.stdout.readline() == "begun\n", process.stderr.read()
    processes[asked].send_signal(signal.SIGTERM)
    (said, code), *others = ends(processes)
    assert said.startswith("saved at ")
    assert code == 75
    assert others == [(said, code)] * 2


def test_all_asked_at_once(start):
    """As when a slice is taken away."""
    processes = start()
    for process in processes:
        assert process.stdout.readline() == "begun\n", process.stderr.read()
    for process in processes:
        process.send_signal(signal.SIGTERM)
    found = ends(processes)
    assert len(set(found)) == 1
    assert found[0][1] == 75


def test_one_that_dies_ends_all_with_75(start):
    processes = start()
    for process in processes:
        assert process.stdout.readline() == "begun\n", process.stderr.read()
    processes[1].kill()
    codes = [code for _, code in ends(processes)]
    assert codes == [75, -signal.SIGKILL, 75]


def test_unasked_they_come_to_the_end(start):
    assert [code for _, code in ends(start(steps=5))] == [0, 0, 0]
