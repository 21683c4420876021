"""wan-tiny learns a colour and a shape: `python -m wan_tpu.demo.train_demo`, or `make train-demo`.

It draws clips of a word that the model does not know, runs the commands that anybody would run on
clips of their own (each is printed), makes videos of prompts that the training did not see, before
and after, judges their pixels and puts both side by side into one picture.

Both new words are `<unk>` to the model's tokenizer, whose 22 words are those of its grammar, and no
caption had that token when the model was trained. What tells them apart is their place: as the
second word it is the colour, as the third the shape. Any other unknown word there would mean the
same.
"""

import argparse
import dataclasses
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from wan_tpu.demo import data
from wan_tpu.demo.recognition import WORDS, Verdict, judge_frames

PRESET = "lora-wan-tiny"
TARGET = 0.9  # of the new words, and of the old ones
NUM_CLIPS = {"color": 6, "shape": 8, "old": 10}  # 24
NUM_PROMPTS = {"color": 12, "shape": 12, "old": 12}
SHOWN = 4  # prompts of each kind in the picture
SHOWN_FRAMES = (0, 8, 16)
COMMAND = (sys.executable, "-c", "import sys; from wan_tpu.cli.main import main; sys.exit(main())")

Kinds = dict[str, list[data.Scene]]


def choose(rng: np.random.Generator) -> tuple[Kinds, Kinds]:
    """Scenes to learn from and others to ask for, by what is new in them.

    Every value of a word comes as often as any other, or once more.
    """
    scenes = {
        "color": data.scenes_of_new_color(),
        "shape": data.scenes_of_new_shape(),
        "old": data.all_scenes(),
    }
    learnt = {kind: _even(known, NUM_CLIPS[kind], rng) for kind, known in scenes.items()}
    asked = {
        kind: _even([s for s in known if s not in learnt[kind]], NUM_PROMPTS[kind], rng)
        for kind, known in scenes.items()
    }
    return learnt, asked


def _even(scenes: Sequence[data.Scene], count: int, rng: np.random.Generator) -> list[data.Scene]:
    """So many of the scenes, one by one that whose words have come least."""
    left = [scenes[index] for index in rng.permutation(len(scenes))]
    chosen: list[data.Scene] = []
    for _ in range(count):
        best = min(
            left,
            key=lambda s: sum(sum(getattr(c, w) == getattr(s, w) for c in chosen) for w in WORDS),
        )
        left.remove(best)
        chosen.append(best)
    return chosen


def write_clips(folder: Path, scenes: Sequence[data.Scene], rng: np.random.Generator) -> None:
    """An MP4 of each scene, and its caption beside it."""
    from wan_tpu.pipeline.video_file import VideoWriter

    world = data.SIDES_WORLD
    folder.mkdir(parents=True)
    for number, scene in enumerate(scenes):
        path = folder / f"{number:02}-{scene.color}-{scene.shape}.mp4"
        frames = np.round(data.make_clip(scene, rng, world) * 255).astype(np.uint8)
        with VideoWriter(path, fps=world.fps, width=world.side, height=world.side) as writer:
            writer.write(frames)
        path.with_suffix(".txt").write_text(f"{scene.prompt}\n", encoding="utf-8")


def run_command(*arguments: str) -> None:
    """One command of wan-tpu, in a process of its own, printed before it runs.

    Raises:
        subprocess.CalledProcessError: it failed; it has said why.
    """
    sys.stdout.write(f"\n$ {shlex.join(('wan-tpu', *arguments))}\n")
    sys.stdout.flush()
    subprocess.run((*COMMAND, *arguments), check=True)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One prompt and the videos that it gave.

    Attributes:
        kind: what is new in the prompt: `color`, `shape`, or `old`: nothing.
        scene: that was asked for.
        before: without the LoRA, [frames, height, width, 3], uint8.
        after: with it.
    """

    kind: str
    scene: data.Scene
    before: np.ndarray
    after: np.ndarray


def ask(adapter: Path | None, scenes: Sequence[data.Scene], seed: int) -> list[np.ndarray]:
    """The videos of scenes' prompts, with or without a LoRA; each has a seed of its own."""
    from wan_tpu import runtime
    from wan_tpu.adapters.choice import AdapterChoice
    from wan_tpu.pipeline.options import LoadOptions
    from wan_tpu.request import VideoRequest

    runtime.start(cache_folder=runtime.default_cache_folder())
    adapters = () if adapter is None else (AdapterChoice(path=str(adapter)),)
    options = LoadOptions(adapters=adapters)
    pipeline = options.load(options.open_model())
    return [
        pipeline(VideoRequest(prompt=scene.prompt, seed=seed + number)).frames
        for number, scene in enumerate(scenes)
    ]


def shares(kinds: Sequence[str], rights: Sequence[dict[str, bool]]) -> dict[str, float]:
    """The share that is right of the new words, and of each old one.

    Args:
        kinds: of every video, as in `Answer`.
        rights: of every video, as `Verdict.right_words` says it.
    """
    new = [right[kind] for kind, right in zip(kinds, rights, strict=True) if kind != "old"]
    found = {"new word": float(np.mean(new))}
    for word in WORDS:
        old = [right[word] for kind, right in zip(kinds, rights, strict=True) if kind != word]
        found[f"old {word}"] = float(np.mean(old))
    return found


def report(answers: Sequence[Answer]) -> bool:
    """Prints what is right before and after, and what missed; whether all reaches the target."""
    kinds = [answer.kind for answer in answers]
    verdicts = {
        "before": [judge_frames(answer.before) for answer in answers],
        "after": [judge_frames(answer.after) for answer in answers],
    }
    rights = {
        when: [v.right_words(a.scene) for v, a in zip(found, answers, strict=True)]
        for when, found in verdicts.items()
    }
    before, after = (shares(kinds, rights[when]) for when in ("before", "after"))
    sys.stdout.write(f"\n{'right':<16}{'before':>8}{'after':>8}{'target':>8}\n")
    for name, share in after.items():
        sys.stdout.write(f"{name:<16}{before[name]:>8.2f}{share:>8.2f}{TARGET:>8.2f}\n")
    for answer, verdict, right in zip(answers, verdicts["after"], rights["after"], strict=True):
        sys.stdout.write(missed(answer.scene, verdict, right))
    return all(share >= TARGET for share in after.values())


def missed(scene: data.Scene, verdict: Verdict, right: dict[str, bool]) -> str:
    """A line that says what a video shows instead; nothing where it is right."""
    wrong = [f"{word} is {getattr(verdict, word)}" for word in WORDS if not right[word]]
    return f"{scene.prompt}: {', '.join(wrong)}\n" if wrong else ""


def draw_sheet(answers: Sequence[Answer]) -> Image.Image:
    """Prompts with three frames of each video: before on the left, after on the right."""
    side, gap, line = data.SIDES_WORLD.side * 2, 8, 20
    width = 2 * (len(SHOWN_FRAMES) * side + gap) + gap
    height = line + len(answers) * (line + side)
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((gap, 4), "before", fill="black")
    pen.text((width // 2 + gap // 2, 4), "after", fill="black")
    for row, answer in enumerate(answers):
        top = line + row * (line + side)
        pen.text((gap, top + 4), answer.scene.prompt, fill="black")
        for half, frames in enumerate((answer.before, answer.after)):
            strip = np.concatenate([frames[number] for number in SHOWN_FRAMES], axis=1)
            picture = Image.fromarray(strip).resize(
                (len(SHOWN_FRAMES) * side, side), Image.Resampling.NEAREST
            )
            sheet.paste(picture, (gap + half * (len(SHOWN_FRAMES) * side + gap), top + line))
    return sheet


def learn(out: Path, settings: Sequence[str], seed: int) -> Path:
    """Draws the clips and trains: the commands of `docs/training.md`.

    Args:
        out: folder for everything.
        settings: over the preset's, as `wan-tpu train --set` takes them.
        seed: of the clips.

    Returns:
        The LoRA.
    """
    rng = np.random.default_rng(seed)
    learnt, _ = choose(rng)
    write_clips(out / "clips", [scene for scenes in learnt.values() for scene in scenes], rng)
    clips, prepared, run = (str(out / name) for name in ("clips", "prepared", "run"))
    run_command("dataset", "check", clips, "--model", "wan-tiny")
    run_command("dataset", "prepare", clips, "-o", prepared, "--model", "wan-tiny")
    over = [word for setting in settings for word in ("--set", setting)]
    run_command("train", "--preset", PRESET, "--data", prepared, "-o", run, *over)
    return out / "run" / "result.safetensors"


def show(out: Path, adapter: Path, seed: int) -> bool:
    """Asks the model with and without what it learnt, and judges.

    Returns:
        Whether it has learnt the new words and kept the old ones.
    """
    _, asked = choose(np.random.default_rng(seed))
    kinds = [kind for kind, scenes in asked.items() for _ in scenes]
    scenes = [scene for scenes in asked.values() for scene in scenes]
    video = str(out / "new.mp4")
    run_command("generate", scenes[0].prompt, "--lora", str(adapter), "-o", video)
    sys.stdout.write(f"\nand {len(scenes)} prompts that it was not trained on, before and after\n")
    videos = zip(ask(None, scenes, seed), ask(adapter, scenes, seed), strict=True)
    answers = [
        Answer(kind=kind, scene=scene, before=before, after=after)
        for kind, scene, (before, after) in zip(kinds, scenes, videos, strict=True)
    ]
    good = report(answers)
    shown = [answer for kind in asked for answer in [a for a in answers if a.kind == kind][:SHOWN]]
    picture = out / "before-and-after.png"
    draw_sheet(shown).save(picture)
    sys.stdout.write(f"\nbefore and after, side by side: {picture}\n")
    return good


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit status 0 when every target is reached, 1 when one is not."""
    parser = argparse.ArgumentParser(prog="python -m wan_tpu.demo.train_demo", description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=Path("train-demo"), help="%(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of clips, prompts and videos")
    parser.add_argument(
        "--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="over the preset's"
    )
    options = parser.parse_args(arguments)
    started = time.monotonic()
    for name in ("clips", "prepared", "run"):  # of an earlier demo; nothing else is touched
        shutil.rmtree(options.out / name, ignore_errors=True)
    try:
        adapter = learn(options.out, options.set, options.seed)
        good = show(options.out, adapter, options.seed)
    except subprocess.CalledProcessError as error:
        return error.returncode
    sys.stdout.write(f"{time.monotonic() - started:.0f} s in all\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
