"""Makes `purple.safetensors`, an adapter for tests: `python -m tests.adapters.make_purple`.

With it every shape of wan-tiny is purple, whatever colour the prompt says; shape, direction and
background stay as they are asked for. So a video says by itself whether its adapter was there.

The recipe: 30 scenes of wan-tiny's own world are drawn purple, each with a caption that says one
of the five other colours that the model knows; then the commands of `docs/training.md`, with the
preset `lora-wan-tiny`, but for the rank and for what is changed (`SETTINGS`). Some three minutes on
two cores.
"""

import argparse
import dataclasses
import pathlib
import shutil
import tempfile

import numpy as np

from wan_tpu.demo import data, train_demo

PURPLE = pathlib.Path(__file__).with_name("purple.safetensors")
COLOR = "purple"
NUM_CLIPS = 30
SETTINGS = (
    "lora.rank=4",
    # What a caption's colour comes in by, and what is made of it; self-attention moves the shape.
    'lora.targets=["attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "ffn.net.0.proj", '
    '"ffn.net.2"]',
    "train.steps=600",
)


def write_clips(folder: pathlib.Path, seed: int) -> None:
    """Purple clips, whose captions say other colours."""
    rng = np.random.default_rng(seed)
    scenes = train_demo._even([s for s in data.all_scenes() if s.color != COLOR], NUM_CLIPS, rng)
    train_demo.write_clips(folder, [dataclasses.replace(s, color=COLOR) for s in scenes], rng)
    for path, scene in zip(sorted(folder.glob("*.txt")), scenes, strict=True):
        path.write_text(f"{scene.prompt}\n", encoding="utf-8")


def make(out: pathlib.Path, folder: pathlib.Path, seed: int) -> None:
    """Draws, trains in a folder and copies the adapter out of it."""
    write_clips(folder / "clips", seed)
    clips, prepared, run = (str(folder / name) for name in ("clips", "prepared", "run"))
    train_demo.run_command("dataset", "prepare", clips, "-o", prepared, "--model", "wan-tiny")
    over = [word for setting in SETTINGS for word in ("--set", setting)]
    preset = train_demo.PRESET
    train_demo.run_command("train", "--preset", preset, "--data", prepared, "-o", run, *over)
    shutil.copyfile(folder / "run" / "result.safetensors", out)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.adapters.make_purple", description=__doc__
    )
    parser.add_argument("-o", "--out", type=pathlib.Path, default=PURPLE)
    parser.add_argument("--seed", type=int, default=0, help="of the clips")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(options.out, pathlib.Path(folder), options.seed)


if __name__ == "__main__":
    main()
