"""The log as one truth: cut where a run goes on, whole lines only, TensorBoard's files the same."""

import os
import struct
import subprocess
import sys

import pytest

from tests.training.lines import step_line
from wan_tpu.errors import MissingPackageError, OutputError, WanTpuError
from wan_tpu.training.log import TrainingLog, read_log
from wan_tpu.training.metrics import Ended, Saved, Started


def write(path, lines, *, step=0, board=None):
    with TrainingLog(path, board, step=step) as log:
        for line in lines:
            log.write(line)


def test_lines_are_read_back(tmp_path):
    lines = [
        Started(step=0, steps=10, time=1.0, settings={"layout": "sp2"}),
        step_line(1),
        Saved(step=1, time=3.0, seconds=0.5),
        Ended(step=1, time=4.0, reason="stopped"),
    ]
    write(tmp_path / "log.jsonl", lines)
    assert read_log(tmp_path / "log.jsonl") == lines
    assert read_log(tmp_path / "none.jsonl") == []


def test_lines_after_the_step_that_a_run_goes_on_from_are_cut(tmp_path):
    """Red when step 3 stands twice, or the checkpoint's own step is lost."""
    path = tmp_path / "log.jsonl"
    before = [step_line(1), step_line(2), Saved(step=2, time=1.0, seconds=0.1), step_line(3)]
    write(path, before)
    again = [Started(step=2, steps=10, time=2.0, settings={}), step_line(3, loss=0.25)]
    write(path, again, step=2)
    assert read_log(path) == [*before[:3], *again]
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]


def test_half_a_line_is_cut_and_not_read(tmp_path):
    path = tmp_path / "log.jsonl"
    write(path, [step_line(1), step_line(2)])
    path.write_bytes(path.read_bytes()[:-9])
    assert read_log(path) == [step_line(1)]
    write(path, [step_line(2)], step=1)
    assert read_log(path) == [step_line(1), step_line(2)]


def test_a_line_that_is_none_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    write(path, [step_line(1)])
    path.write_bytes(path.read_bytes() + b'{"kind": "Stap"}\n')
    with pytest.raises(WanTpuError, match=r"log.jsonl, line 2: not a message"):
        read_log(path)
    with pytest.raises(WanTpuError, match=r"line 2"):
        TrainingLog(path, None, step=1)


FULL = """
import pathlib, resource, sys
from tests.training.lines import step_line
from wan_tpu.errors import OutputError
from wan_tpu.training.log import TrainingLog
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # no fork: this process has JAX's threads
with TrainingLog(pathlib.Path(sys.argv[1]), None, step=0) as log:
    try:
        for step in range(1, 100):
            log.write(step_line(step))
    except OutputError as error:
        print(step, error)
"""


def test_a_full_disk_leaves_whole_lines(tmp_path):
    """A limit on the size of a file stands for the disk's: in the middle of the fourth line."""
    path = tmp_path / "log.jsonl"
    write(path, [step_line(1)])
    size = path.stat().st_size
    path.unlink()
    limit = size * 3 + size // 2
    done = subprocess.run(
        [sys.executable, "-c", FULL, path, str(limit)], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"4 cannot write {path}: File too large\n"
    assert path.read_bytes().endswith(b"\n")
    assert [line.step for line in read_log(path)] == [1, 2, 3]


def scalars(folder):
    """(step, name, value) of every scalar in TensorBoard's files, in the order of the files."""
    from tensorboardX.proto import event_pb2

    found, starts = [], []
    for path in sorted(folder.iterdir(), key=os.path.getmtime):
        data = path.read_bytes()
        while data:  # length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            if event.HasField("session_log"):
                starts.append(event.step)
            found += [(event.step, v.tag, round(v.simple_value, 6)) for v in event.summary.value]
    return found, starts


def test_tensorboard_has_the_same_lines(tmp_path):
    board = tmp_path / "board"
    write(tmp_path / "log.jsonl", [step_line(1), step_line(2, mfu=None, loss=None)], board=board)
    found, _ = scalars(board)
    of_first = {name: value for step, name, value in found if step == 1}
    assert of_first["train/loss"] == of_first["loss_by_sigma/0.2-0.4"] == 0.5
    assert (of_first["speed/mfu"], of_first["speed/seconds_a_step"]) == (0.35, 2.0)
    of_second = {name for step, name, _ in found if step == 2}
    assert set(of_first) - of_second == {"speed/mfu", "train/loss", "loss_by_sigma/0.2-0.4"}


def test_tensorboard_drops_the_steps_after_the_one_that_a_run_goes_on_from(tmp_path):
    """Red when the second file does not say from which step on the first one is void."""
    path, board = tmp_path / "log.jsonl", tmp_path / "board"
    write(path, [step_line(1), step_line(2), step_line(3)], board=board)
    write(path, [step_line(2)], step=1, board=board)
    _, starts = scalars(board)
    assert starts == [2]


def test_without_tensorboardx_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(MissingPackageError, match=r"wan_tpu\[train\]"):
        TrainingLog(tmp_path / "log.jsonl", tmp_path, step=0)


def test_a_log_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*log.jsonl"):
        TrainingLog(tmp_path / "none" / "log.jsonl", None, step=0)
