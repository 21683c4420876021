"""Work in several processes: all of it done, a crash told from the rest, none left behind."""

import multiprocessing
import subprocess
import sys
import time

import psutil
import pytest

from tests.dataset import work
from wan_tpu.dataset.processes import Crashed, in_processes

NUMBERS = list(range(12))


@pytest.mark.parametrize("workers", [0, 2])
def test_everything_is_done_once(workers):
    found = list(in_processes(work.double, NUMBERS, workers))
    assert sorted(found) == [(n, 2 * n) for n in NUMBERS]


def test_a_process_that_ends_takes_nothing_with_it():
    """Red when a broken pool ends the run, or those that ran beside the culprit are lost."""
    found = dict(in_processes(work.end_at_three, NUMBERS, 2))
    assert isinstance(found.pop(3), Crashed)
    assert found == {n: 2 * n for n in NUMBERS if n != 3}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_of_ours_is_not_hidden(workers):
    with pytest.raises(ZeroDivisionError, match="three"):
        list(in_processes(work.fail_at_three, NUMBERS, workers))
    assert not multiprocessing.active_children()


def test_processes_end_when_nobody_waits_any_more():
    results = in_processes(work.wait, NUMBERS, 2)
    assert next(results) == (0, 0)
    assert multiprocessing.active_children()
    begin = time.monotonic()
    results.close()
    assert not multiprocessing.active_children()
    assert time.monotonic() - begin < 30  # the work takes 60


def test_processes_end_with_one_that_is_killed():
    """In the middle of their work, which takes a minute."""
    code = (
        "from tests.dataset import work; from wan_tpu.dataset.processes import in_processes; "
        "[print(done, flush=True) for done in in_processes(work.wait, [0, 1, 1], 2)]"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        process.stdout.readline()  # one is done with its first, and has another one
        children = psutil.Process(process.pid).children()
        assert len(children) == 3  # and what tracks their resources
        process.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_ctrl_c_is_heard_by_the_one_that_waits_alone():
    """A terminal sends it to all of them, and each would write its own traceback."""
    code = (
        "from tests.dataset import work; from wan_tpu.dataset.processes import in_processes; "
        "print(work.hears_ctrl_c(0), sorted(in_processes(work.hears_ctrl_c, [0] * 3, 3)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True [(0, False), (1, False), (2, False)]\n"


def test_nothing_to_do():
    assert list(in_processes(work.double, [], 2)) == []
