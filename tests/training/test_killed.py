"""Real processes of `wan-tpu train`: killed at any moment, on a full disk, told to stop."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from safetensors.torch import load_file

from tests.training.runs import config_of, make_model_and_data
from wan_tpu.training.config import MachineConfig, OptimiserConfig, SaveConfig
from wan_tpu.training.config_file import to_toml

STEPS, SAVED_EVERY = 32, 4
PATIENCE_SECONDS = 300


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run of many short steps, saved every fourth."""
    folder = tmp_path_factory.mktemp("made")
    config = config_of(
        *make_model_and_data(folder),
        steps=STEPS,
        optimiser=OptimiserConfig(learning_rate=1e-3, schedule="cosine", ema_decay=0.9),
        machine=MachineConfig(layout="single", host_devices=1),
        save=SaveConfig(every_minutes=0, every_steps=SAVED_EVERY, keep=3),
    )
    (folder / "run.toml").write_text(to_toml(config))
    return folder / "run.toml"


LIMITED = """
import resource, signal, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from wan_tpu.cli.main import main
sys.exit(main())
"""
"""A process whose files may have no more bytes than its first argument says."""


def start(config: pathlib.Path, run: pathlib.Path, *, limit: int | None = None):
    """`wan-tpu train`, as a user starts it; `limit` is the most bytes that a file may have."""
    way = ["-m", "wan_tpu.cli.main"] if limit is None else ["-c", LIMITED, str(limit)]
    return subprocess.Popen(
        [sys.executable, *way, "train", config, "-o", run],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process) -> tuple[int, str]:
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, errors


def steps_of(run: pathlib.Path) -> list[int]:
    """The steps in the log, whole lines alone."""
    log = run / "log.jsonl"
    if not log.exists():
        return []
    lines = [json.loads(line) for line in log.read_text().split("\n")[:-1]]
    return [line["step"] for line in lines if line["kind"] == "Step"]


def wait_for_steps(process, run: pathlib.Path, number: int) -> None:
    begin = time.monotonic()
    while process.poll() is None and len(steps_of(run)) < number:
        assert time.monotonic() - begin < PATIENCE_SECONDS
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    code, errors = finish(start(config, run))
    assert code == 0, errors
    return run


def assert_same_result(run: pathlib.Path, undisturbed: pathlib.Path) -> None:
    """The same bits, and each step once in the log."""
    expected, found = (load_file(folder / "result.safetensors") for folder in (undisturbed, run))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert np.array_equal(tensor.float().numpy(), found[name].float().numpy()), name
    assert steps_of(run) == list(range(1, STEPS + 1))


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_same_bits(config, undisturbed, tmp_path, kills):
    """At moments drawn from a fixed seed: while it starts, between steps, while it saves."""
    moments, run = random.Random(kills), tmp_path / "run"
    for number in range(kills):
        process = start(config, run)
        if number % 3 == 2:
            time.sleep(moments.uniform(0.5, 8))  # wherever that is
        else:
            saved = len(steps_of(run)) // SAVED_EVERY * SAVED_EVERY
            wait_for_steps(process, run, saved + moments.randint(1, SAVED_EVERY + 2))
            time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.communicate()
    code, errors = finish(start(config, run))
    assert code == 0, errors
    assert_same_result(run, undisturbed)


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(config, undisturbed, tmp_path):
    """Files may have as many bytes as the log needs, and no checkpoint."""
    run = tmp_path / "run"
    first = start(config, run)
    wait_for_steps(first, run, 9)
    first.send_signal(signal.SIGTERM)
    code, errors = finish(first)
    assert code == 75, errors
    there = sorted(os.listdir(run / "checkpoints"))
    code, errors = finish(start(config, run, limit=40_000))
    assert code == 1
    last = errors.strip().split("\n")[-1]
    assert last.startswith("wan-tpu: cannot write"), errors
    assert "is the last that is whole" in last
    assert set(there) <= set(os.listdir(run / "checkpoints"))
    code, errors = finish(start(config, run))
    assert code == 0, errors
    assert_same_result(run, undisturbed)
