"""The judge's command: names of files, the table, its exit status."""

import numpy as np
import pytest

from wan_tpu.demo import data, judge
from wan_tpu.pipeline.video_file import VideoWriter


def write_clip(path, scene: data.Scene) -> None:
    frames = data.make_clip(scene, np.random.default_rng(0))
    size = data.CLIP_SIZE
    with VideoWriter(path, fps=data.CLIP_FPS, width=size, height=size) as writer:
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
    def draw(prompts, seeds, paths):
        assert len(set(seeds)) == len(prompts)
        for prompt, path in zip(prompts, paths, strict=True):
            write_clip(path, data.parse_prompt(prompt))

    monkeypatch.setattr(judge, "generate_videos", draw)
    assert judge.main(["--prompts", "3", "--seed", "1", "--out", str(tmp_path / "videos")]) == 0
    assert len(list((tmp_path / "videos").glob("*.mp4"))) == 3
    assert "3/3" in capsys.readouterr().out


def test_a_file_without_a_caption_is_refused(tmp_path):
    with pytest.raises(ValueError, match="COLOR SHAPE moving"):
        judge.scene_of_file(tmp_path / "holiday.mp4")
