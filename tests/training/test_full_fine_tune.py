"""All weights of wan-tiny-ti2v through the command line and a kill, judged by fixed losses."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.multihost.running import clean_environment
from tests.training.test_killed import steps_of, wait_for_steps
from wan_tpu.demo import data
from wan_tpu.demo.recognition import Verdict, judge_frames
from wan_tpu.pipeline.video_file import VideoWriter, read_frames

MODEL, STEPS, SAVED = "wan-tiny-ti2v", 200, 20
LEARNT, HELD_OUT = 12, 6
PATIENCE_SECONDS = 3600
SEEN_AS = "purple"
"""What this model's autoencoder makes of the new colour; before the training its word is yellow."""


def start(*words: object, folder: pathlib.Path):
    return subprocess.Popen(
        [sys.executable, "-m", "wan_tpu.cli.main", *map(str, words)],
        cwd=folder,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command(*words: object, folder: pathlib.Path) -> str:
    """What `wan-tpu` prints; it succeeds."""
    process = start(*words, folder=folder)
    out, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    return out


def write_clips(folder: pathlib.Path, scenes: list[data.Scene], numbers) -> None:
    """An MP4 of each scene with its caption beside it."""
    world = data.MIDDLE_WORLD
    folder.mkdir()
    for number, scene in enumerate(scenes):
        path = folder / f"{number:02}.mp4"
        frames = np.round(data.make_clip(scene, numbers, world) * 255).astype(np.uint8)
        with VideoWriter(path, fps=world.fps, width=world.side, height=world.side) as writer:
            writer.write(frames)
        path.with_suffix(".txt").write_text(scene.prompt)


def prepare_clips(folder: pathlib.Path) -> list[data.Scene]:
    """Prepared clips of a colour that the model does not know: to learn from, and others."""
    numbers = np.random.default_rng(0)
    scenes = [data.scenes_of_new_color()[n] for n in numbers.permutation(36)]
    for name, some in {
        "learnt": scenes[:LEARNT],
        "others": scenes[LEARNT : LEARNT + HELD_OUT],
    }.items():
        write_clips(folder / f"{name}-clips", some, numbers)
        command(
            "dataset", "prepare", f"{name}-clips", "-o", name, "--model", MODEL, folder=folder
        )  # fmt: skip
    return scenes


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE_SECONDS)
def test_a_model_learns_a_colour_through_a_kill_and_is_served(tmp_path):
    scenes, run = prepare_clips(tmp_path), tmp_path / "run"
    words = ["train", "--preset", f"full-{MODEL}", "--data", "learnt", "-o", "run"]
    words += ["--steps", STEPS, "--set", f"save.every_steps={SAVED}", "--host-devices", 1]
    killed = start(*words, folder=tmp_path)
    wait_for_steps(killed, run, STEPS // 2 + 2)
    killed.kill()
    killed.communicate()
    assert STEPS // 2 <= len(steps_of(run)) < STEPS
    assert command(*words, folder=tmp_path) == f"{run}/result\n"
    assert steps_of(run) == list(range(1, STEPS + 1))
    command("evaluate", "run", "--data", "others", "--clips", HELD_OUT, folder=tmp_path)
    report = json.loads((run / "evaluation" / "evaluation.json").read_text())
    for row in report["losses"]:
        assert row["trained"]["mean"] < row["base"]["mean"], row["sigma"]
    scene = scenes[-1]
    command(
        "generate", scene.prompt, "--model", run / "result", "-o", "new.mp4", "--host-devices", 1,
        folder=tmp_path,
    )  # fmt: skip
    verdict = judge_frames(read_frames(tmp_path / "new.mp4"))
    assert verdict == Verdict(
        color=SEEN_AS,
        shape=scene.shape,
        direction=scene.direction,
        background=scene.background,
    )
