"""Standard streams that are closed, full, without a reader or of another encoding: no traceback."""

import json
import os
import subprocess

import numpy as np
import pytest

from tests.cli.conftest import COMMAND

PROMPT = "a red circle moving right on a black background"


@pytest.fixture
def shell(environment, tmp_path):
    """Runs a command with redirections of a shell's."""

    def shell(command, **env):
        words = " ".join(f"'{word}'" for word in COMMAND)
        return subprocess.run(
            ["bash", "-c", f'wan-tpu() {{ {words} "$@"; }}; {command}'],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment | env,
            timeout=300,
            check=False,
        )

    return shell


FULL = "wan-tpu: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize(
    ("command", "code", "out", "err"),
    [
        ("wan-tpu inspect wan-tiny >&-", 0, "", ""),
        ("wan-tpu inspect wan-tiny --json <&- >&-", 0, "", ""),
        ("wan-tpu inspect wan-tiny >/dev/full", 1, "", FULL),
        ("wan-tpu --help >/dev/full", 1, "", FULL),
        ("wan-tpu --version >&-", 0, "", ""),
        ("wan-tpu inspect wan-huge 2>&-", 2, "", ""),
        ("wan-tpu inspect wan-huge 2>/dev/full", 2, "", ""),
        ("wan-tpu inspect wan-huge <&- >&- 2>&-", 2, "", ""),
        ("wan-tpu generate 2>/dev/full", 2, "", ""),
        ("wan-tpu inspect wan-huge 2> >(exit 0)", 2, "", ""),
        ("wan-tpu inspect wan2.1-t2v-14b --json | head -c 1; exit ${PIPESTATUS[0]}", None, "{", ""),
    ],
)
def test_every_ending_is_the_documented_one(shell, command, code, out, err):
    done = shell(command)
    assert (done.stdout, done.stderr) == (out, err)
    assert done.returncode in ((0, 1) if code is None else (code,))


def test_a_video_is_made_with_all_streams_closed(shell, tmp_path):
    """Red when the file gets the number of a closed stream, and what libraries print with it."""
    done = shell(f"wan-tpu generate '{PROMPT}' --steps 1 -o out.npy <&- >&- 2>&-")
    assert done.returncode == 0
    assert np.load(tmp_path / "out.npy").shape == (17, 64, 64, 3)
    assert json.loads((tmp_path / "out.json").read_text())["video"] == "out.npy"


def test_a_video_whose_name_cannot_be_said_is_made_all_the_same(shell, tmp_path):
    done = shell(f"wan-tpu generate '{PROMPT}' --steps 1 -o out.npy >/dev/full")
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith(
        "wan-tpu: out.npy is complete; cannot write to standard output: No space left on device\n"
    )
    assert (tmp_path / "out.npy").exists()


def test_names_beyond_the_terminals_encoding_come_back_as_they_were_given(shell, tmp_path):
    name = "\u6a21\u578b \U0001f3ac.npy"
    done = shell(f"wan-tpu generate '{PROMPT}' --steps 1 -o '{name}'", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == f"{name}\n"
    assert (tmp_path / name).exists()


def test_help_in_an_encoding_without_its_signs(run):
    done = run("plan", "--help", env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stderr) == (0, "")


def test_progress_in_a_log_is_a_line_a_stage(run, tmp_path):
    done = run("generate", PROMPT, "--steps", "3", "-o", "out.npy")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    stages = [line.split(" s] ")[1] for line in lines if line.startswith("[")]
    assert "\r" not in done.stderr
    assert [stage for stage in stages if not stage.startswith("compile")] == [
        "load",
        "text, 2 prompts",
        "denoise, 3 steps",
        "decode, 17 frames",
    ]
    assert len(stages) == len(set(stages))
    assert "compile step" in stages
    assert os.path.getsize(tmp_path / "out.npy") > 0
