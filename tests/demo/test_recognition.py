"""The recognition against drawn clips through a real MP4, and clips it must refuse."""

import numpy as np
import pytest

from wan_tpu.demo import data
from wan_tpu.demo.recognition import UNSEEN, WORDS, judge_file, judge_frames
from wan_tpu.pipeline.video_file import VideoWriter, read_frames

SCENE = data.Scene(color="red", shape="circle", direction="right", background="black")


def drawn(scene: data.Scene, seed: int = 0, world: data.World = data.SIDES_WORLD) -> np.ndarray:
    clip = data.make_clip(scene, np.random.default_rng(seed), world)
    return np.round(clip * 255).astype(np.uint8)


def write_mp4(path, frames: np.ndarray) -> None:
    with VideoWriter(path, fps=8, width=frames.shape[2], height=frames.shape[1]) as writer:
        writer.write(frames)


@pytest.mark.parametrize(("world", "every"), [(data.SIDES_WORLD, 1), (data.MIDDLE_WORLD, 5)])
def test_every_scene_is_recognised_through_an_mp4(world, every, tmp_path):
    # All clips in one file: 216 processes of ffmpeg would take 20 s. Five has no factor in common
    # with the words of any kind, so that all of them come.
    scenes = data.all_scenes()[::every]
    clips = [drawn(scene, seed, world) for seed, scene in enumerate(scenes)]
    write_mp4(tmp_path / "all.mp4", np.concatenate(clips))
    frames = read_frames(tmp_path / "all.mp4")
    assert len(frames) == len(scenes) * world.num_frames
    for scene, clip in zip(scenes, np.split(frames, len(scenes)), strict=True):
        assert all(judge_frames(clip).right_words(scene).values()), scene.prompt


def test_judge_file_reads_an_mp4(tmp_path):
    write_mp4(tmp_path / "one.mp4", drawn(SCENE))
    assert judge_file(tmp_path / "one.mp4").right_words(SCENE) == dict.fromkeys(WORDS, True)


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("color", {"color": "purple"}),
        ("shape", {"shape": "square"}),
        ("shape", {"shape": "triangle"}),
        ("direction", {"direction": "left"}),
        ("direction", {"direction": "up"}),
        ("background", {"background": "navy"}),
    ],
)
def test_a_wrong_clip_is_wrong_in_just_that_word(word, other):
    shown = data.Scene(**{name: other.get(name, getattr(SCENE, name)) for name in WORDS})
    right = judge_frames(drawn(shown)).right_words(SCENE)
    assert right == {name: name != word for name in WORDS}


def test_reversed_time_reverses_the_direction():
    assert judge_frames(drawn(SCENE)[::-1]).direction == "left"


def test_a_still_shape_has_no_direction():
    still = np.repeat(drawn(SCENE)[8:9], 17, axis=0)
    verdict = judge_frames(still)
    assert (verdict.direction, verdict.shape) == (UNSEEN, "circle")


def test_noise_and_empty_pictures_show_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (17, 64, 64, 3), dtype=np.uint8)
    assert judge_frames(noise).shape == UNSEEN
    assert judge_frames(noise).direction == UNSEEN
    empty = judge_frames(np.zeros((17, 64, 64, 3), dtype=np.uint8))
    assert (empty.color, empty.shape, empty.direction) == (UNSEEN,) * 3
    assert empty.background == "black"


def test_a_colour_between_two_is_neither():
    frames = drawn(SCENE).astype(np.float32)
    frames *= np.array([0.45, 1, 1])  # a dark red: 130 from red
    assert judge_frames(frames.astype(np.uint8)).color == UNSEEN


def test_two_shapes_are_not_one():
    frames = np.maximum(drawn(SCENE), drawn(SCENE)[::-1])
    assert judge_frames(frames).direction == UNSEEN
