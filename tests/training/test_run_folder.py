"""Whose folder it is, what may change when a run goes on, and who may train there."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from wan_tpu.errors import InputError, OutputError
from wan_tpu.training.config import LoraConfig, OptimiserConfig, TrainConfig, TrainingConfig
from wan_tpu.training.config_file import read_config
from wan_tpu.training.lock import Lock, holder_of, is_held
from wan_tpu.training.run_folder import (
    digest_of_config,
    is_run,
    open_run,
    read_run,
)

CONFIG = TrainingConfig()


def replace(table, **values):
    return dataclasses.replace(
        CONFIG, **{table: dataclasses.replace(getattr(CONFIG, table), **values)}
    )


def begin(folder):
    """A run with a checkpoint; nothing but its name counts here."""
    with open_run(folder, CONFIG):
        (folder / "checkpoints" / "4").mkdir()


def contents(folder):
    """Every file below a folder, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_a_new_folder_has_all_that_decides_the_run(tmp_path):
    folder = tmp_path / "runs" / "fox"
    with open_run(folder, CONFIG) as run:
        assert run.path == folder
        assert run.checkpoints.is_dir()
        assert is_held(folder / "lock")
    assert not is_held(folder / "lock")
    assert read_config(folder / "config.toml", needs_data=False) == CONFIG
    told = read_run(folder)
    assert (told["kind"], told["config"]["lora.rank"]) == ("lora", 32)
    assert told["config_digest"] == digest_of_config(CONFIG)
    assert told["starts"][0]["pid"] == os.getpid()
    assert "jax" in told["starts"][0]["versions"]
    assert is_run(folder)


def test_a_folder_that_is_empty_is_taken(tmp_path):
    with open_run(tmp_path, CONFIG):
        assert is_run(tmp_path)


@pytest.mark.parametrize(
    ("table", "values", "said"),
    [
        ("train", {"steps": 2000}, "train.steps was 1000, is 2000"),
        ("train", {"log_every": 5}, "train.log_every was 1, is 5"),
        ("data", {"workers": 2}, "data.workers was 0, is 2"),
        ("machine", {"layout": "sp2"}, 'machine.layout was open, is "sp2"'),
        ("save", {"keep": 9}, "save.keep was 3, is 9"),
        ("samples", {"prompts": ("a",)}, 'samples.prompts was [], is ["a"]'),
    ],
)
def test_what_may_change(tmp_path, table, values, said):
    with open_run(tmp_path, CONFIG):
        pass
    changed = replace(table, **values)
    with open_run(tmp_path, changed):
        pass
    told = read_run(tmp_path)
    assert [start["changes"] for start in told["starts"]] == [[], [said]]
    assert read_config(tmp_path / "config.toml", needs_data=False) == changed
    assert told["config_digest"] == digest_of_config(CONFIG)


@pytest.mark.parametrize(
    ("table", "values", "said"),
    [
        ("optimiser", {"learning_rate": 2e-4}, "optimiser.learning_rate was 0.0001, is 0.0002"),
        ("optimiser", {"ema_decay": 0.5}, "optimiser.ema_decay was open, is 0.5"),
        ("train", {"seed": 1}, "train.seed was 0, is 1"),
        ("train", {"trains": "full"}, 'train.trains was "lora", is "full"'),
        ("data", {"caption_dropout": 0.0}, "data.caption_dropout was 0.1, is 0.0"),
        ("lora", {"rank": 8}, "lora.rank was 32, is 8"),
    ],
)
def test_what_must_not_change(tmp_path, table, values, said):
    begin(tmp_path)
    before = contents(tmp_path) | {"lock": None}
    changed = replace(table, **values)
    with pytest.raises(InputError) as caught:
        open_run(tmp_path, changed)
    assert said in str(caught.value)
    assert contents(tmp_path) | {"lock": None} == before
    assert not is_held(tmp_path / "lock")
    assert digest_of_config(changed) != digest_of_config(CONFIG)


def test_before_the_first_checkpoint_everything_may_change(tmp_path):
    """A mistake in the configuration does not cost the folder."""
    with open_run(tmp_path, CONFIG) as run:
        run.note_data("sha256:a")
        (run.samples / "base").mkdir()
    (tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()  # never ended
    changed = replace("train", trains="full")
    with open_run(tmp_path, changed) as run:
        assert not list(run.samples.iterdir())
        run.note_data("sha256:b")
        (run.samples / "base").mkdir()
    told = read_run(tmp_path)
    assert (told["kind"], told["data_digest"]) == ("full", "sha256:b")
    assert told["config_digest"] == digest_of_config(changed)
    assert 'train.trains was "lora", is "full"' in told["starts"][1]["changes"]
    with open_run(tmp_path, changed) as run:
        assert list(run.samples.iterdir()), "the same base's videos are kept"


def test_every_difference_is_named_and_those_that_may_be_are_not(tmp_path):
    begin(tmp_path)
    changed = TrainingConfig(
        optimiser=OptimiserConfig(eps=1e-6), lora=LoraConfig(rank=4), train=TrainConfig(steps=5)
    )
    with pytest.raises(InputError) as caught:
        open_run(tmp_path, changed)
    assert "eps was 1e-08, is 1e-06; lora.rank was 32, is 4; say it" in str(caught.value)
    assert "steps" not in str(caught.value)


def test_data_is_compared(tmp_path):
    with open_run(tmp_path, CONFIG) as run:
        run.note_data("sha256:a")
        (run.checkpoints / "4").mkdir()
    with open_run(tmp_path, CONFIG) as run:
        run.note_data("sha256:a")
        with pytest.raises(InputError, match="its digest was sha256:a, is sha256:b"):
            run.note_data("sha256:b")


STRANGERS = {
    "somebody's files": {"notes.txt": "mine", "config.toml": "mine"},
    "a configuration alone": {"config.toml": "mine"},
    "another program's run": {"run.json": '{"kind": "lora"}'},
    "no JSON": {"run.json": "{"},
    "a later version's": {
        "run.json": '{"written_by": "wan-tpu train", "format": 2, "version": "9.0"}'
    },
}


@pytest.mark.parametrize("case", STRANGERS)
def test_what_is_not_ours_is_refused_and_not_touched(tmp_path, case):
    for name, text in STRANGERS[case].items():
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=str(tmp_path)):
        open_run(tmp_path, CONFIG)
    assert contents(tmp_path) == before


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "fox").write_text("mine")
    with pytest.raises(OutputError, match="is not a folder"):
        open_run(tmp_path / "fox", CONFIG)
    with pytest.raises(OutputError, match="Not a directory"):
        open_run(tmp_path / "fox" / "run", CONFIG)
    with pytest.raises(InputError, match="mount the bucket"):
        open_run("gs://bucket/run", CONFIG)
    with pytest.raises(InputError, match=r"is not there; wan-tpu train CONFIG.toml -o"):
        read_run(tmp_path / "none")


def test_what_an_early_end_left_is_taken_over(tmp_path):
    (tmp_path / "lock").write_text("")
    (tmp_path / ".wan-tpu-1-0.part").write_text("{")
    with open_run(tmp_path, CONFIG):
        assert is_run(tmp_path)


def test_a_run_json_without_the_rest_is_a_run(tmp_path):
    with open_run(tmp_path, CONFIG):
        pass
    (tmp_path / "config.toml").unlink()
    with open_run(tmp_path, CONFIG):
        assert (tmp_path / "config.toml").exists()


def test_a_process_that_does_not_lead_changes_nothing(tmp_path):
    with open_run(tmp_path / "fox", CONFIG, leads=False):
        assert not list(tmp_path.iterdir())
    with open_run(tmp_path, CONFIG) as run:
        before = contents(tmp_path)
        with open_run(tmp_path, CONFIG, leads=False) as other:
            other.note_data("sha256:b")
        assert contents(tmp_path) == before
        run.note_data("sha256:a")
        with pytest.raises(InputError, match="its digest was sha256:a, is sha256:b"):
            other.note_data("sha256:b")


def test_a_second_process_is_told_who_trains(tmp_path):
    with (
        open_run(tmp_path, CONFIG),
        pytest.raises(OutputError, match=rf"trains in {tmp_path}: process {os.getpid()} on "),
    ):
        open_run(tmp_path, CONFIG)
    with open_run(tmp_path, CONFIG):
        assert holder_of(tmp_path / "lock")["pid"] == os.getpid()


RACE = """
import sys, time
from wan_tpu.errors import OutputError
from wan_tpu.training.config import TrainingConfig
from wan_tpu.training.run_folder import open_run
sys.stdin.readline()
try:
    with open_run(sys.argv[1], TrainingConfig()):
        print("mine", flush=True)
        sys.stdin.readline()
except OutputError as error:
    print(error, flush=True)
"""


def start(script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_of_processes_that_race_for_a_new_folder_one_gets_it(tmp_path):
    """Red when a process writes before it has the lock, or two have it."""
    racers = [start(RACE, str(tmp_path / "fox")) for _ in range(3)]
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.stdout.readline() for racer in racers]
    for racer in racers:
        racer.communicate("end\n", timeout=30)
    winners = [racer.pid for racer, line in zip(racers, said, strict=True) if line == "mine\n"]
    assert len(winners) == 1
    losers = [line for line in said if line != "mine\n"]
    assert all(f"process {winners[0]} on" in line for line in losers), losers
    assert len(read_run(tmp_path / "fox")["starts"]) == 1


FORKS = """
import os, sys, time
from wan_tpu.training.lock import Lock
import pathlib
Lock(pathlib.Path(sys.argv[1])).take()
if os.fork() == 0:
    os.close(1)
    sys.stdin.readline()
    os._exit(0)
print("mine", flush=True)
time.sleep(60)
"""


def test_a_lock_ends_with_its_process_though_a_child_lives_on(tmp_path):
    """Red when a worker that reads data, and outlives a kill -9, keeps the folder locked."""
    lock = tmp_path / "lock"
    holder = start(FORKS, str(lock))
    assert holder.stdout.readline() == "mine\n"
    assert is_held(lock)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    Lock(lock).take()
    assert is_held(lock)
    holder.communicate()


def test_who_only_looks_does_not_keep_a_process_from_training(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text("")
    looks = f"""
import pathlib, time
from wan_tpu.training.lock import is_held
print("looks", flush=True)
end = time.monotonic() + 3
while time.monotonic() < end: is_held(pathlib.Path({str(lock)!r}))
"""
    process = start(looks)
    process.stdout.readline()
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        mine = Lock(lock)
        mine.take()
        mine.release()
    process.kill()
    process.communicate()


def test_json_stays_json(tmp_path):
    with open_run(tmp_path, replace("samples", prompts=("ein Füchslein",))):
        pass
    assert "Füchslein" in (tmp_path / "run.json").read_text()
    json.loads((tmp_path / "run.json").read_text())
