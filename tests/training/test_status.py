"""How far a run is, of every state that its folder can be in, and while it is being written."""

import json
import subprocess
import sys

import pytest

from tests.training.lines import step_line
from wan_tpu.errors import InputError, WanTpuError
from wan_tpu.training.config import TrainConfig, TrainingConfig
from wan_tpu.training.log import TrainingLog
from wan_tpu.training.metrics import Ended, Sampled, Saved, Stage, Started
from wan_tpu.training.run_folder import open_run
from wan_tpu.training.status import describe_status, read_status

CONFIG = TrainingConfig(train=TrainConfig(steps=10))
BEGUN = Started(step=0, steps=10, time=1.0, settings={"layout": "sp2"})


@pytest.fixture
def run(tmp_path):
    """Writes lines into a run's folder while it is held; gives its state then and after."""

    def run(*lines):
        with open_run(tmp_path / "fox", CONFIG) as folder:
            with TrainingLog(folder.log, None, step=0) as log:
                for line in lines:
                    log.write(line)
            during = read_status(folder.path)
        return during, read_status(folder.path)

    return run


def test_before_the_first_step(run):
    during, after = run(BEGUN, Stage(step=0, name="compile train_step", time=2.0))
    assert (during["state"], during["stage"], during["step"]) == (
        "running",
        "compile train_step",
        0,
    )
    assert ", compile train_step\n" in describe_status(during)
    assert (after["state"], after["stage"], after["holder"]) == ("killed", None, None)
    assert "killed; the same command goes on" in describe_status(after)


def test_in_the_middle(run):
    steps = [step_line(n, loss=float(n), loss_by_expert={"low": 2.0 * n}) for n in range(1, 5)]
    during, after = run(BEGUN, *steps[:3], Saved(step=3, time=9.0, seconds=1.0), steps[3])
    assert (during["step"], during["steps"], during["epoch"]) == (4, 10, 1.0)
    assert (during["loss"], during["loss_by_expert"]) == (2.5, {"low": 5.0})
    assert during["loss_by_sigma"] == {"0.2-0.4": 2.5}
    assert during["checkpoint"] == {"step": 3, "time": 9.0}
    assert during["hours_left"] == pytest.approx(6 * 2.0 / 3600)
    assert during["settings"] == {"layout": "sp2"}
    assert json.loads(json.dumps(after)) == after
    text = describe_status(after)
    assert "step        4 of 10, epoch 1.00\n" in text
    assert "by sigma    0.2-0.4: 2.5\n" in text
    assert "speed       2 s a step, 4 samples/s, 2.62e+04 tokens/s, MFU 35.0 %\n" in text
    assert "checkpoint  step 3, " in text


def test_losses_are_of_the_last_fifty_lines(run):
    steps = [step_line(n, steps=99, loss=1000.0 if n <= 20 else 1.0) for n in range(1, 71)]
    assert run(BEGUN, *steps)[0]["loss"] == 1.0


@pytest.mark.parametrize("reason", ["finished", "stopped", "OutOfMemoryError: no"])
def test_the_last_word(run, reason):
    _, after = run(BEGUN, step_line(1), Ended(step=1, time=3.0, reason=reason))
    assert after["state"] == reason
    assert ("goes on" in describe_status(after)) == (reason != "finished")


def test_a_loss_that_is_no_number_and_samples(run):
    none = step_line(1, loss=None, loss_by_sigma={"0.2-0.4": None}, mfu=None, gradient_norm=None)
    _, after = run(BEGUN, none, Sampled(step=1, time=2.0, files=["samples/a.mp4"]))
    text = describe_status(after)
    assert "loss        no number\n" in text
    assert "samples     1, the last samples/a.mp4\n" in text
    assert "by sigma" not in text


def test_a_run_without_a_line(run):
    assert run()[1]["state"] == "not begun"


def test_no_run(tmp_path):
    with pytest.raises(InputError, match="is no run folder"):
        read_status(tmp_path)


@pytest.mark.parametrize("name", ["lock", "log.jsonl"])
def test_what_cannot_be_read(run, tmp_path, name):
    run(BEGUN)
    (tmp_path / "fox" / name).unlink()
    (tmp_path / "fox" / name).symlink_to(name)  # in a circle: not for root either
    with pytest.raises(WanTpuError, match=f"{name} cannot be read"):
        read_status(tmp_path / "fox")


WRITES = """
import sys
from tests.training.lines import step_line
from tests.training.test_status import CONFIG
from wan_tpu.training.log import TrainingLog
from wan_tpu.training.run_folder import open_run
with open_run(sys.argv[1], CONFIG) as folder:
    print("open", flush=True)
    step = 0
    while True:
        start = step - step % 7
        with TrainingLog(folder.log, None, step=start) as log:
            for step in range(start + 1, start + 13):
                log.write(step_line(step, steps=10**9))
"""


def test_while_another_process_writes_and_cuts(tmp_path):
    """Red when half a line is taken for a line, or a log that is being cut is not there."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITES, str(tmp_path / "fox")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout.readline() == "open\n"
        seen = [read_status(tmp_path / "fox") for _ in range(300)]
    finally:
        writer.kill()
        writer.communicate()
    assert {status["state"] for status in seen} == {"running"}
    assert {status["holder"]["pid"] for status in seen} == {writer.pid}
    assert seen[-1]["step"] > 0
    assert read_status(tmp_path / "fox")["state"] == "killed"
