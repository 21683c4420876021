"""The demo of training: its scenes, its clips, its counting and its picture; slow: all of it."""

import collections

import numpy as np
import pytest

from wan_tpu.demo import data, train_demo
from wan_tpu.demo.recognition import WORDS, judge_file, judge_frames
from wan_tpu.demo.train_demo import Answer

NEW_SCENES = data.scenes_of_new_color() + data.scenes_of_new_shape()


def drawn(scene: data.Scene, seed: int = 0) -> np.ndarray:
    clip = data.make_clip(scene, np.random.default_rng(seed), data.SIDES_WORLD)
    return np.round(clip * 255).astype(np.uint8)


def test_no_known_scene_has_a_new_word():
    assert len(set(NEW_SCENES)) == 36 + 72
    assert not set(NEW_SCENES) & set(data.all_scenes())
    assert [data.parse_prompt(scene.prompt) for scene in NEW_SCENES] == NEW_SCENES


def test_the_new_colour_is_no_known_one():
    """Red when it is so near another that the judge would take one for the other."""
    for color in data.NEW_COLORS.values():
        for known in (data.COLORS | data.BACKGROUNDS).values():
            assert np.linalg.norm(np.subtract(color, known)) >= 100


def test_a_funnel_is_as_large_as_a_triangle_and_wide_above():
    center = np.array([[31.3, 32.8]], np.float32)
    funnel, triangle = (
        data.shape_coverage(shape, center, 12.0, side=64)[0] for shape in ("funnel", "triangle")
    )
    assert funnel.sum() == pytest.approx(triangle.sum(), rel=0.01)
    assert funnel[23:27].sum() > 3 * funnel[38:42].sum()


def test_new_scenes_are_recognised():
    for seed, scene in enumerate(NEW_SCENES[::5]):  # five: all words of every kind come
        assert all(judge_frames(drawn(scene, seed)).right_words(scene).values()), scene.prompt


def test_what_is_learnt_is_even_and_is_not_asked():
    learnt, asked = train_demo.choose(np.random.default_rng(0))
    assert sum(map(len, learnt.values())) == sum(map(len, asked.values())) - 12 == 24
    for kind in learnt:
        scenes = learnt[kind] + asked[kind]
        assert len(set(scenes)) == len(scenes)
        for word in WORDS:
            counts = collections.Counter(getattr(scene, word) for scene in learnt[kind])
            assert max(counts.values()) - min(counts.values()) <= 1, (kind, word)
    assert {scene.direction for scene in learnt["color"]} == set(data.DIRECTIONS)
    assert {scene.color for scene in learnt["shape"]} == set(data.COLORS)


def test_clips_are_files_with_their_captions(tmp_path):
    scenes = NEW_SCENES[::50]
    train_demo.write_clips(tmp_path / "clips", scenes, np.random.default_rng(0))
    paths = sorted((tmp_path / "clips").glob("*.mp4"))
    assert len(paths) == len(scenes)
    for path, scene in zip(paths, scenes, strict=True):
        assert path.with_suffix(".txt").read_text(encoding="utf-8").strip() == scene.prompt
        assert all(judge_file(path).right_words(scene).values())


def answers() -> list[Answer]:
    """Of a model that drew what is known instead of what is new, and afterwards is right."""
    old = data.Scene(color="red", shape="circle", direction="up", background="navy")
    color = data.Scene(color="sky", shape="circle", direction="up", background="navy")
    shape = data.Scene(color="red", shape="funnel", direction="up", background="navy")
    return [
        Answer(kind=kind, scene=scene, before=drawn(old), after=drawn(scene))
        for kind, scene in (("old", old), ("color", color), ("shape", shape))
    ]


def test_the_report_counts_new_and_old_words_apart(capsys):
    assert train_demo.report(answers())
    rows = {
        line[:16].strip(): line[16:].split() for line in capsys.readouterr().out.splitlines()[2:]
    }
    assert rows == {
        "new word": ["0.00", "1.00", "0.90"],
        **{f"old {word}": ["1.00", "1.00", "0.90"] for word in WORDS},
    }


def test_the_report_says_what_a_wrong_video_shows(capsys):
    good = answers()
    wrong = Answer(kind="color", scene=good[1].scene, before=good[1].before, after=good[0].after)
    assert not train_demo.report([*good, wrong])
    rows = capsys.readouterr().out.splitlines()
    assert rows[-1] == f"{wrong.scene.prompt}: color is red"


def test_the_picture_has_before_on_the_left_and_after_on_the_right():
    sheet = np.asarray(train_demo.draw_sheet(answers()))
    left, right = np.split(sheet, [sheet.shape[1] // 2], axis=1)
    for half, has_it in ((left, False), (right, True)):
        near = np.abs(half.astype(int) - data.NEW_COLORS["sky"]).max(axis=-1) <= 2
        assert near.any() == has_it


@pytest.mark.slow
def test_wan_tiny_learns_the_new_words_and_keeps_the_old(tmp_path, capfd):
    assert train_demo.main(["-o", str(tmp_path / "demo")]) == 0, capfd.readouterr().out
    assert (tmp_path / "demo" / "before-and-after.png").exists()
    assert (tmp_path / "demo" / "new.mp4").exists()
