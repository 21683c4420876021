"""Says how well an embedded model obeys: `python -m wan_tpu.demo.judge --model wan-tiny`.

It makes videos, judges their pixels and prints a table. A model that takes pictures is asked three
ways: by a prompt alone; by a picture and a prompt that describes it; and by the same picture and
the opposite direction, which the picture must not decide.

With files as arguments it judges those instead: each needs its caption in its name, words joined by
dashes, as the command itself names them (`a-red-circle-moving-right-on-a-black-background.mp4`, any
number may follow).
"""

import argparse
import dataclasses
import functools
import io
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wan_tpu.demo import data
from wan_tpu.demo.recognition import WORDS, Verdict, judge_file
from wan_tpu.media import NO_MEDIA, Media, digest_of
from wan_tpu.request import VideoRequest

logger = logging.getLogger(__name__)

# What the recipes must reach, per word of the caption.
TARGETS = {"color": 0.90, "shape": 0.80, "direction": 0.90, "background": 0.90}
FIRST_FRAME_TARGET = 28.0  # dB of peak signal to noise, for every video that begins with a picture
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One video to ask for: a caption, a seed, and the picture that it begins with, if any."""

    scene: data.Scene
    seed: int
    picture: np.ndarray | None = None  # [side, side, 3], uint8


def choose_scenes(count: int, rng: np.random.Generator) -> list[data.Scene]:
    """Distinct scenes (up to all 216) at random, the same for the same generator."""
    scenes = data.all_scenes()
    return [scenes[index] for index in rng.permutation(len(scenes))[:count]]


def make_trials(
    rng: np.random.Generator, count: int, world: data.World, takes_pictures: bool
) -> dict[str, list[Trial]]:
    """What a model is asked, by the way it is asked; the third way half as often."""

    def seed() -> int:
        return int(rng.integers(2**31))

    trials = {"text": [Trial(scene=s, seed=seed()) for s in choose_scenes(count, rng)]}
    if takes_pictures:
        trials["picture"] = [
            Trial(scene=scene, seed=seed(), picture=data.make_picture(scene, rng, world))
            for scene in choose_scenes(count, rng)
        ]
        trials["other direction"] = [
            Trial(
                scene=dataclasses.replace(trial.scene, direction=OPPOSITE[trial.scene.direction]),
                seed=seed(),
                picture=trial.picture,
            )
            for trial in trials["picture"][: (count + 1) // 2]
        ]
    return trials


def decibels(frame: np.ndarray, picture: np.ndarray) -> float:
    """Peak signal to noise of a frame against a picture, both uint8."""
    error = np.mean((frame.astype(np.float64) - picture.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def file_name(scene: data.Scene, seed: int) -> str:
    """The name under which a scene's video is kept."""
    return f"{scene.prompt.replace(' ', '-')}-{seed}.mp4"


def scene_of_file(path: Path) -> data.Scene:
    """The scene that a file's name promises.

    Raises:
        ValueError: the name is not a caption.
    """
    return data.parse_prompt(re.sub(r"-\d+$", "", path.stem).replace("-", " "))


@functools.cache
def open_pipeline(model: str):
    """The library's own pipeline, made once."""
    from wan_tpu import runtime  # JAX only when videos are made
    from wan_tpu.pipeline.video_pipeline import VideoPipeline

    runtime.start(cache_folder=runtime.default_cache_folder())
    return VideoPipeline.from_pretrained(model)


def generate_videos(
    model: str, trials: Sequence[Trial], paths: Sequence[Path], fps: int
) -> list[np.ndarray]:
    """Makes one MP4 per trial with the library's own pipeline.

    Returns:
        The first frame of each as it was before it became part of a file, [height, width, 3] uint8.
    """
    from wan_tpu.pipeline.video_file import VideoWriter

    firsts = []
    for trial, path in zip(trials, paths, strict=True):
        request, media = make_request(trial)
        frames = open_pipeline(model)(request, media=media).frames
        _, height, width, _ = frames.shape
        with VideoWriter(path, fps=fps, width=width, height=height) as writer:
            writer.write(frames)
        firsts.append(frames[0])
        logger.info("wrote %s", path)
    return firsts


def make_request(trial: Trial) -> tuple[VideoRequest, Media]:
    """What a trial asks of the library, the picture as a PNG."""
    request = VideoRequest(prompt=trial.scene.prompt, seed=trial.seed)
    if trial.picture is None:
        return request, NO_MEDIA
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(trial.picture).save(buffer, "PNG")
    content = buffer.getvalue()
    return dataclasses.replace(request, image=digest_of(content)), Media.of(content)


def make_table(scenes: Sequence[data.Scene], verdicts: Sequence[Verdict]) -> str:
    """The right answers per word, and a line for every video that missed one."""
    right = [verdict.right_words(scene) for scene, verdict in zip(scenes, verdicts, strict=True)]
    lines = [f"{'word':<12}{'right':>9}{'share':>8}{'target':>8}"]
    for word in WORDS:
        count = sum(answer[word] for answer in right)
        share = count / len(scenes)
        lines.append(f"{word:<12}{f'{count}/{len(scenes)}':>9}{share:>8.2f}{TARGETS[word]:>8.2f}")
    for scene, verdict, answer in zip(scenes, verdicts, right, strict=True):
        wrong = [f"{word} is {getattr(verdict, word)}" for word in WORDS if not answer[word]]
        if wrong:
            lines.append(f"{scene.prompt}: {', '.join(wrong)}")
    return "\n".join(lines)


def obeys(scenes: Sequence[data.Scene], verdicts: Sequence[Verdict]) -> bool:
    """Whether every word reaches its target."""
    right = [verdict.right_words(scene) for scene, verdict in zip(scenes, verdicts, strict=True)]
    return all(np.mean([answer[word] for answer in right]) >= TARGETS[word] for word in WORDS)


def judge_files(paths: Sequence[Path]) -> bool:
    """Prints the table of files with captions for names; whether every word reaches its target."""
    scenes, verdicts = [scene_of_file(path) for path in paths], [judge_file(path) for path in paths]
    sys.stdout.write(make_table(scenes, verdicts) + "\n")
    return obeys(scenes, verdicts)


def judge_model(model: str, count: int, seed: int | None, out: Path) -> bool:
    """Makes, judges and prints; whether every word and every first frame reaches its target."""
    from wan_tpu.demo.recipes import RECIPES  # torch only when videos are made

    recipe, rng = RECIPES[model], np.random.default_rng(seed)
    good = True
    for way, trials in make_trials(rng, count, recipe.world, recipe.takes_pictures).items():
        folder = out / way.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / file_name(trial.scene, trial.seed) for trial in trials]
        firsts = generate_videos(model, trials, paths, recipe.world.fps)
        sys.stdout.write(f"{model} by {way}\n")
        good &= judge_files(paths)
        kept = [
            decibels(first, trial.picture)
            for first, trial in zip(firsts, trials, strict=True)
            if trial.picture is not None
        ]
        if kept:
            sys.stdout.write(
                f"first frame: {min(kept):.1f} dB at least, {np.mean(kept):.1f} dB on average, "
                f"target {FIRST_FRAME_TARGET:.1f}\n"
            )
            good &= min(kept) >= FIRST_FRAME_TARGET
    return good


def main(arguments: list[str] | None = None) -> int:
    """The command line; exit status 0 when every target is reached, 1 when one is not."""
    parser = argparse.ArgumentParser(prog="python -m wan_tpu.demo.judge", description=__doc__)
    parser.add_argument(
        "files", nargs="*", type=Path, help="MP4 files to judge instead of new ones"
    )
    parser.add_argument("--model", choices=("wan-tiny", "wan-tiny-ti2v"), default="wan-tiny")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--seed", type=int, default=None, help="default: another one every time")
    parser.add_argument("--out", type=Path, help="folder of the videos; default: MODEL-judged")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    if options.files:
        return 0 if judge_files(options.files) else 1
    out = options.out or Path(f"{options.model}-judged")
    return 0 if judge_model(options.model, options.prompts, options.seed, out) else 1


if __name__ == "__main__":
    sys.exit(main())
