"""What a training says on stderr: lines in a file, a bar on a terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

from tests.training.lines import step_line
from wan_tpu.training import progress
from wan_tpu.training.metrics import Ended, Sampled, Saved, Stage, Started
from wan_tpu.training.progress import TrainingProgress, describe, hours_left


def test_a_line_in_words():
    assert describe(step_line(4, steps=904)) == (
        "loss 0.5, 2 s a step, 26.2k tokens/s, MFU 35 %, 0.5 h left"
    )
    assert describe(step_line(10, mfu=None, loss=None, tokens_per_second=7.0)) == (
        "loss no number, 2 s a step, 7 tokens/s, 0.0 h left"
    )
    assert hours_left(step_line(10, steps=1810)) == 1.0


LINES = [
    Started(step=0, steps=3, time=0.0, settings={}),
    Stage(step=0, name="compile train_step", time=0.0),
    step_line(1, steps=3),
    step_line(2, steps=3),
    Saved(step=2, time=0.0, seconds=1.0),
    Sampled(step=2, time=0.0, files=["samples/2-0.mp4"]),
    step_line(3, steps=3),
    Ended(step=3, time=0.0, reason="finished"),
]


def said(capsys):
    return [line.split("] ", 1)[1] for line in capsys.readouterr().err.splitlines()]


def test_in_a_file_it_says_the_first_step_the_last_and_what_is_rare(capsys):
    with TrainingProgress() as shown:
        for line in LINES:
            shown.show(line)
    lines = said(capsys)
    assert lines[:2] == ["training, 3 steps", "compile train_step"]
    assert [line.split(",")[0] for line in lines[2:]] == [
        "step 1 of 3",
        "checkpoint of step 2",
        "samples of step 2: samples/2-0.mp4",
        "step 3 of 3",
    ]


def test_in_a_file_it_says_a_step_every_so_often(capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    with TrainingProgress() as shown:
        settings = {"layout": "sp2", "experts": ["a", "b"]}
        shown.show(Started(step=4, steps=9, time=0.0, settings=settings))
        shown.show(step_line(5, steps=9))
        shown.show(step_line(6, steps=9))
        shown.show(Ended(step=6, time=0.0, reason="stopped"))
    first, *others = said(capsys)
    assert first == "training goes on after step 4 of 9, layout sp2, experts a+b"
    assert [line.split(",")[0] for line in others] == [
        "step 5 of 9",
        "step 6 of 9",
        "stopped after step 6",
    ]


def test_a_process_that_does_not_lead_says_nothing(capsys):
    with TrainingProgress(shown=False) as shown:
        for line in LINES:
            shown.show(line)
    assert capsys.readouterr().err == ""


BAR = """
from tests.training.test_progress import LINES
from wan_tpu.training.progress import TrainingProgress
with TrainingProgress() as shown:
    for line in LINES:
        shown.show(line)
"""


def test_on_a_terminal_it_is_a_bar():
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 140, 0, 0))
    subprocess.run([sys.executable, "-c", BAR], stderr=theirs, check=True)
    text = os.read(ours, 1 << 16).decode()
    os.close(ours)
    os.close(theirs)
    assert "training 100%" in text
    assert "3/3" in text
    assert "loss 0.5, 2 s a step, 26.2k tokens/s, MFU 35 %, 0.0 h left" in text
    assert "wan-tpu: checkpoint of step 2" in text
