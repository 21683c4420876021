"""A training from the command line: begun, stopped by Ctrl-C, gone on with, exported."""

import json
import os
import re
import signal
import subprocess

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from tests.cli.conftest import COMMAND
from wan_tpu.training.log import read_log
from wan_tpu.training.metrics import Ended, Saved, Started, Step
from wan_tpu.training.run_folder import read_run

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("heeds_hangups")]

CONFIG = """
preset = "lora-wan-tiny"
[data]
path = "clips"
[train]
batch = 2
[save]
every_steps = 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four pictures with captions, and what is to be done with them."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "clips").mkdir()
    for number in range(4):
        picture = np.zeros((64, 64, 3), np.uint8)
        picture[:, 8 * number : 8 * number + 20] = (250, 40 * number, 90)
        Image.fromarray(picture).save(folder / "clips" / f"{number}.png")
        (folder / "clips" / f"{number}.txt").write_text(f"a stripe at {number}")
    (folder / "fox.toml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def stopped(folder, environment):
    """(what it said, exit code) of a training that Ctrl-C stops after its second step."""
    process = subprocess.Popen(
        [*COMMAND, "train", "fox.toml", "--steps", "100000"], cwd=folder, env=environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    said = ""
    while "checkpoint of step 2\n" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    os.kill(process.pid, signal.SIGINT)
    out, rest = process.communicate(timeout=120)
    assert out == ""
    return said + rest, process.returncode


@pytest.fixture(scope="module")
def finished(stopped, folder, environment):
    """The same training, two steps longer than it was when it was stopped; and its log before."""
    before = read_log(folder / "runs" / "fox" / "log.jsonl")
    done = subprocess.run(
        [*COMMAND, "train", "runs/fox", "--set", f"train.steps={before[-1].step + 2}"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return before, done


def test_ctrl_c_saves_and_says_how_to_go_on(stopped, folder):
    said, code = stopped
    assert code == 130
    lines = read_log(folder / "runs" / "fox" / "log.jsonl")
    last = lines[-1]
    assert isinstance(last, Ended)
    assert last.reason == "stopped"
    assert isinstance(lines[-2], Saved)
    assert lines[-2].step == last.step >= 2
    assert f"stopped after step {last.step} of 100000, which is saved; the same command" in said
    assert "Traceback" not in said


def test_it_goes_on_after_the_step_that_was_saved(finished, folder):
    """Red when a step stands twice in the log, or is missing."""
    before, done = finished
    step = before[-1].step
    assert done.stdout == f"{folder}/runs/fox/result.safetensors\n"
    assert f"training goes on after step {step} of {step + 2}" in done.stderr
    lines = read_log(folder / "runs" / "fox" / "log.jsonl")
    assert lines[: len(before)] == before
    assert [line.step for line in lines if isinstance(line, Step)] == [*range(1, step + 3)]
    assert [line.step for line in lines if isinstance(line, Started)] == [0, step]
    assert (lines[-1].step, lines[-1].reason) == (step + 2, "finished")


def test_the_folder_tells_all_of_it(finished, folder):
    before, _ = finished
    told = read_run(folder / "runs" / "fox")
    changed = f"train.steps was 100000, is {before[-1].step + 2}"
    assert [start["changes"] for start in told["starts"]] == [[], [changed]]
    assert re.fullmatch(r"\S{16,}", told["data_digest"])
    assert list((folder / "runs" / "fox" / "tensorboard").iterdir())
    (settings,) = {json.dumps(line.settings) for line in before if isinstance(line, Started)}
    assert json.loads(settings)["layout"] == "single"


def test_an_export_of_an_earlier_step_in_another_style(finished, folder, environment):
    step = str(finished[0][-1].step)
    words = ["runs/fox", "-o", "fox.safetensors", "--style", "kohya", "--step", step]
    done = subprocess.run(
        [*COMMAND, "train", "export", *words], cwd=folder, env=environment, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "fox.safetensors\n"), done.stderr
    with safe_open(folder / "fox.safetensors", "np") as file:
        names, header = set(file.keys()), file.metadata()
    assert "lora_unet_blocks_0_self_attn_q.lora_down.weight" in names
    assert step in header.values()
