"""Two real processes of `wan-tpu train` over loopback: one run, killed, and what is refused."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.multihost.running import clean_environment, free_port
from tests.server.running import wait_for
from tests.tolerances import LAYOUT
from tests.training.runs import config_of, make_model_and_data, place_on_first_devices, run
from wan_tpu.checkpoints.models import open_model
from wan_tpu.errors import MismatchError
from wan_tpu.multihost.lockstep import EXIT_LOST
from wan_tpu.pipeline.video_file import read_frames
from wan_tpu.training import agreed
from wan_tpu.training.asked import Asked
from wan_tpu.training.checkpoint import Checkpoints
from wan_tpu.training.config import MachineConfig, OptimiserConfig, SampleConfig, SaveConfig
from wan_tpu.training.config_file import to_toml
from wan_tpu.training.evaluate import evaluate
from wan_tpu.training.trainer import Trainer

STEPS = 24
PATIENCE_SECONDS = 300
OWN_FOLDER = "/proc/self/cwd"
"""One path that each process sees something else at."""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run on dp2 of a device in each of two processes, saved every fourth step."""
    return config_of(
        *make_model_and_data(tmp_path_factory.mktemp("made")),
        steps=STEPS,
        optimiser=OptimiserConfig(learning_rate=1e-3, schedule="cosine", ema_decay=0.9),
        machine=MachineConfig(layout="dp2", host_devices=1, attention="reference"),
        save=SaveConfig(every_minutes=0, every_steps=4, keep=3),
    )


@pytest.fixture
def one_process(monkeypatch):
    """Runs of this process take the first devices of its eight."""
    for module in ("run", "evaluate"):
        monkeypatch.setattr(f"wan_tpu.training.{module}.place_for_training", place_on_first_devices)


class Pair:
    """The same command in two processes, each in a folder of its own."""

    def __init__(self, folder: pathlib.Path, *words: object):
        coordinator = f"127.0.0.1:{free_port()}"
        self.folder, self.processes = folder, []
        for number in range(2):
            (folder / f"{number}").mkdir(exist_ok=True, parents=True)
            where = ["--coordinator", coordinator, "--processes", "2", "--process-id", str(number)]
            with self._log(number).open("w") as log:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "wan_tpu.cli.main", *map(str, words), *where],
                        cwd=folder / f"{number}",
                        env=clean_environment(),
                        stdout=subprocess.PIPE,
                        stderr=log,
                        text=True,
                    )
                )

    def _log(self, number: int) -> pathlib.Path:
        return self.folder / f"{number}.log"

    def logs(self) -> tuple[str, ...]:
        """What each has said so far."""
        return tuple(self._log(number).read_text() for number in range(2))

    def ends(self) -> tuple[int, ...]:
        """The exit codes."""
        for process in self.processes:
            process.communicate(timeout=PATIENCE_SECONDS)
        return tuple(process.returncode for process in self.processes)


@pytest.fixture
def pair(tmp_path):
    """Starts a command in two processes; none outlives the test."""
    started: list[Pair] = []

    def start(*words: object) -> Pair:
        started.append(Pair(tmp_path / "cwd", *words))
        return started[-1]

    yield start
    for process in (process for each in started for process in each.processes):
        process.kill()
        process.communicate()


def write_config(folder: pathlib.Path, config) -> pathlib.Path:
    path = folder / "run.toml"
    path.write_text(to_toml(config))
    return path


def saved(folder: pathlib.Path) -> list[int]:
    """Steps of the whole checkpoints; those that are being written have another name."""
    return sorted(int(path.name) for path in (folder / "checkpoints").glob("[0-9]*[0-9]"))


@pytest.mark.parametrize("is_killed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_two_processes_train_as_one_does(config, pair, one_process, tmp_path, is_killed):
    """Red when a process feeds its devices with other samples, or a checkpoint lacks its part."""
    file, folder = write_config(tmp_path, config), tmp_path / "two"
    if is_killed:
        first = pair("train", file, "-o", folder)
        wait_for(lambda: saved(folder) or first.processes[1].poll() is not None, PATIENCE_SECONDS)
        first.processes[1].kill()
        assert first.ends() == (EXIT_LOST, -9), first.logs()
        assert "process 1" in first.logs()[0].strip().splitlines()[-1]
    begin = (saved(folder) or [0])[-1]
    assert begin < STEPS, "killed too late to show anything"
    last = pair("train", file, "-o", folder)
    assert last.ends() == (0, 0), last.logs()
    assert (f"training goes on after step {begin} of {STEPS}" in last.logs()[0]) == is_killed
    config = in_this_process(config)
    run(config, tmp_path / "one")
    found, expected = (last_states(each, config) for each in (folder, tmp_path / "one"))
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        difference = np.linalg.norm(np.asarray(found[path], np.float64) - array)
        assert difference <= LAYOUT * max(float(np.linalg.norm(array)), 1e-12), path


def in_this_process(config):
    """The same run on the first devices of this process."""
    machine = dataclasses.replace(config.machine, host_devices=None)
    return dataclasses.replace(config, machine=machine)


def last_states(folder: pathlib.Path, config) -> dict:
    """What is trained, moments and average after the last step, by their path."""
    trainer = Trainer(config, place_on_first_devices(config, open_model(config.model.name)))
    with Checkpoints(folder / "checkpoints", keep=100) as checkpoints:
        states = checkpoints.restore(STEPS, trainer.step, trainer.state_names)
    return {path: np.asarray(x) for path, x in jax.tree_util.tree_flatten_with_path(states)[0]}


@pytest.mark.parametrize("what", ["folder", "data"])
def test_what_another_process_sees_otherwise_is_refused_in_all(monkeypatch, tmp_path, what):
    """As process 0 of two, the other one's answer given."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    other = "" if what == "folder" else f"sha256:{'b' * 64}"

    def gather(codes):
        return np.stack([codes, np.frombuffer(other.encode().ljust(len(codes), b"\0"), np.uint8)])

    monkeypatch.setattr("jax.experimental.multihost_utils.process_allgather", gather)
    if what == "folder":
        (tmp_path / "run.json").write_text("{}")
        with pytest.raises(MismatchError, match=f"process 1 does not see {tmp_path}, where"):
            agreed.check_same_folder(tmp_path)
        return
    agreed.check_same_data(other)
    with pytest.raises(MismatchError) as caught:
        agreed.check_same_data(f"sha256:{'a' * 64}")
    for part in ("process 1 has other data", other, f"process 0's sha256:{'a' * 64}; every host"):
        assert part in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["folder", "data"])
def test_other_data_and_another_folder_are_refused_in_one_line(config, pair, tmp_path, what):
    for number in ("0", "1"):
        shutil.copytree(config.data.path, tmp_path / "cwd" / number / "data")
    of_other = tmp_path / "cwd" / "1" / "data" / "dataset.json"
    manifest = json.loads(of_other.read_text())
    manifest["samples"].pop()
    of_other.write_text(json.dumps(manifest))
    file = write_config(tmp_path, config)
    words = ["-o", f"{OWN_FOLDER}/two"]
    if what == "data":
        words = ["-o", tmp_path / "two", "--data", f"{OWN_FOLDER}/data"]
    both = pair("train", file, *words)
    assert both.ends() == (1, 1), both.logs()
    said = "process 1 has other data than process 0" if what == "data" else "does not see /proc"
    for log in both.logs():
        assert said in log.strip().splitlines()[-1]
        assert "Traceback" not in log


@pytest.mark.slow
def test_samples_and_evaluation_of_two_processes(config, pair, one_process, tmp_path):
    """Videos and losses are those of one process."""
    small = SampleConfig(
        every_steps=2, prompts=("a fox",), steps=2, size="32x16", num_frames=5, seed=1
    )
    config = dataclasses.replace(
        config, samples=small, train=dataclasses.replace(config.train, steps=3)
    )
    folder, one = tmp_path / "two", tmp_path / "one"
    both = pair("train", write_config(tmp_path, config), "-o", folder)
    assert both.ends() == (0, 0), both.logs()
    both = pair("evaluate", folder, "--clips", "3")
    assert both.ends() == (0, 0), both.logs()
    config = in_this_process(config)
    run(config, one)
    evaluate(one, config, Asked(clips=3, prompts=small.prompts), one / "evaluation")
    videos = [f"samples/{step}/01.mp4" for step in ("base", "step-000002", "step-000003")]
    videos += [f"evaluation/{which}/01.mp4" for which in ("base", "trained")]
    for name in videos:
        frames = [read_frames(each / name).astype(int) for each in (folder, one)]
        assert np.abs(frames[0] - frames[1]).mean() < 0.5, name  # rounding, through a codec
    reports = [each / "evaluation" / "evaluation.json" for each in (folder, one)]
    rows = [json.loads(report.read_text())["losses"] for report in reports]
    for row, expected in zip(*rows, strict=True):
        for which in ("base", "trained"):
            np.testing.assert_allclose(row[which]["clips"], expected[which]["clips"], rtol=LAYOUT)
    assert "index.html" in os.listdir(folder / "evaluation")
