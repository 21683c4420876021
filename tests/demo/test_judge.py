"""The judge's command: names of files, the table, its exit status."""

import dataclasses

import numpy as np
import pytest

from wan_tpu.demo import data, judge
from wan_tpu.image.picture import read_picture
from wan_tpu.pipeline.video_file import VideoWriter


def write_clip(path, scene: data.Scene) -> None:
    frames = data.make_clip(scene, np.random.default_rng(0), data.SIDES_WORLD)
    with VideoWriter(path, fps=8, width=64, height=64) as writer:
        writer.write(np.round(frames * 255).astype(np.uint8))


def test_choose_scenes_repeats_with_the_seed_and_never_within_one():
    first = judge.choose_scenes(48, np.random.default_rng(5))
    assert first == judge.choose_scenes(48, np.random.default_rng(5))
    assert first != judge.choose_scenes(48, np.random.default_rng(6))
    assert len(set(first)) == 48


def test_file_names_hold_the_scene(tmp_path):
    for scene in data.all_scenes():
        assert judge.scene_of_file(tmp_path / judge.file_name(scene, 123)) == scene


def test_the_command_accepts_obedient_files(tmp_path, capsys):
    scenes = data.all_scenes()[::60]
    paths = [tmp_path / judge.file_name(scene, 0) for scene in scenes]
    for path, scene in zip(paths, scenes, strict=True):
        write_clip(path, scene)
    assert judge.main([str(path) for path in paths]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 1 + 4
    assert all(f"{len(scenes)}/{len(scenes)}" in row for row in rows[1:])


def test_the_command_names_what_a_disobedient_file_shows(tmp_path, capsys):
    asked, shown = data.all_scenes()[0], data.all_scenes()[1]
    assert asked.background != shown.background
    path = tmp_path / judge.file_name(asked, 7)
    write_clip(path, shown)
    assert judge.main([str(path)]) == 1
    rows = capsys.readouterr().out.splitlines()
    assert rows[-1] == f"{asked.prompt}: background is {shown.background}"


def test_main_generates_what_it_judges(tmp_path, capsys, monkeypatch):
    def draw(model, trials, paths, fps):
        assert (model, fps) == ("wan-tiny", 8)
        assert len({trial.seed for trial in trials}) == len(paths)
        for trial, path in zip(trials, paths, strict=True):
            assert trial.picture is None
            write_clip(path, trial.scene)
        return [np.zeros((64, 64, 3), np.uint8)] * len(paths)

    monkeypatch.setattr(judge, "generate_videos", draw)
    assert judge.main(["--prompts", "3", "--seed", "1", "--out", str(tmp_path / "videos")]) == 0
    assert len(list((tmp_path / "videos").rglob("*.mp4"))) == 3
    assert "3/3" in capsys.readouterr().out


@pytest.mark.parametrize(("error", "status"), [(2, 0), (20, 1)])
def test_a_model_that_takes_pictures_is_asked_three_ways_and_must_keep_them(
    error, status, tmp_path, capsys, monkeypatch
):
    asked = []

    def draw(model, trials, paths, fps):
        asked.append(trials)
        for trial, path in zip(trials, paths, strict=True):
            write_clip(path, trial.scene)
        pictures = [t.picture if t.picture is not None else np.zeros(1) for t in trials]
        # Every value is off by `error`: 20 log10(255 / error) dB.
        return [np.where(p > 127, p - float(error), p + float(error)) for p in pictures]

    monkeypatch.setattr(judge, "generate_videos", draw)
    arguments = ["--model", "wan-tiny-ti2v", "--prompts", "4", "--seed", "1"]
    assert judge.main([*arguments, "--out", str(tmp_path)]) == status
    text, picture, other = asked
    assert [len(trials) for trials in asked] == [4, 4, 2]
    assert all(trial.picture is None for trial in text)
    for first, second in zip(picture, other, strict=False):
        assert np.array_equal(first.picture, second.picture)
        assert (first.seed, first.scene) != (second.seed, second.scene)
        assert judge.OPPOSITE[first.scene.direction] == second.scene.direction
        assert dataclasses.replace(second.scene, direction=first.scene.direction) == first.scene
    assert f"first frame: {20 * np.log10(255 / error):.1f} dB at least" in capsys.readouterr().out


def test_a_request_names_the_bytes_of_its_picture():
    (trial,) = judge.make_trials(np.random.default_rng(0), 1, data.MIDDLE_WORLD, True)["picture"]
    request, media = judge.make_request(trial)
    assert request.image is not None
    assert request.prompt == trial.scene.prompt
    assert trial.picture is not None
    assert np.array_equal(read_picture(media[request.image]), trial.picture)


def test_a_file_without_a_caption_is_refused(tmp_path):
    with pytest.raises(ValueError, match="COLOR SHAPE moving"):
        judge.scene_of_file(tmp_path / "holiday.mp4")
