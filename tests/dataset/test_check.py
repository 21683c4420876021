"""A folder of broken clips: each is named with its fault, the others can be learnt from."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from tests.dataset.broken_clips import EXPECTED, LENGTH, RATE, SIZE, make_broken_clips
from tests.image.clips import make_clip, moving
from wan_tpu.dataset.buckets import Buckets
from wan_tpu.dataset.check import check
from wan_tpu.dataset.decode import read_window
from wan_tpu.dataset.faults import FAULTS, NOTES
from wan_tpu.dataset.listing import list_entries

BUCKETS = Buckets(sizes=(SIZE,), lengths=(LENGTH,), fps=RATE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    make_broken_clips(folder)
    return folder


@pytest.fixture(scope="module")
def report(folder):
    return check(list_entries(folder), BUCKETS, workers=0)


def kinds(report, name):
    return tuple(sorted(each.kind for each in report.all_findings if each.name == name))


def words(report, name):
    return " ".join(each.words for each in report.all_findings if each.name == name)


@pytest.mark.parametrize("name", EXPECTED)
def test_each_file_is_named_with_what_is_wrong_with_it(report, name):
    assert kinds(report, name) == EXPECTED[name]


def test_nothing_else_is_said(report):
    assert {finding.name for finding in report.all_findings} <= set(EXPECTED)
    assert all("\n" not in finding.words for finding in report.all_findings)
    assert all(len(finding.words) < 200 for finding in report.all_findings)


def test_those_without_a_fault_are_good_and_no_others(report):
    faulty = {name for name, found in EXPECTED.items() if set(found) & set(FAULTS)}
    passed_over = {"notes.md", "stray.txt"}
    good = {entry.name for entry in report.good}
    assert good == set(EXPECTED) - faulty - passed_over
    assert {placed.entry.name for placed in report.placement.placed} == good
    assert report.placement.left == ()


def test_every_good_file_gives_its_frames(report):
    for placed in report.placement.placed:
        frames = read_window(placed.entry, placed.window, placed.geometry, fps=RATE)
        assert frames.shape == (placed.geometry.num_frames, SIZE[1], SIZE[0], 3)
        assert np.ptp(frames) > 100, placed.entry.name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("short.mp4", "7 frames at 16 frames per second (0.44 s) and 17 are wanted; 5 would fit"),
        ("small.mp4", "64x48 pixels do not cover 96x64, and nothing is made larger; 64x32 would"),
        ("hole.mp4", "of 20 frames 5 can be decoded, to 0.25 s"),
        ("twin.mp4", "its bytes are those of good.mp4"),
        ("remuxed.mkv", "its frames are those of good.mp4"),
        ("varying.mkv", "62 to 438 ms between frames; at each moment of 16 per second the frame"),
        ("faster.mp4", "30 frames per second; at each moment of 16 per second the frame nearest"),
        ("turned.mov", "stored turned by 90 degrees to the right; it is turned upright"),
        ("depth.mov", "10 bits a sample; rounded to 8"),
        ("wide pixels.mp4", "cover 192x64 -> 96x64, 50 % of its width is cut off"),
        ("black.mp4", "every frame is black"),
        ("flat.png", "it is of one colour"),
        ("really.mp4", "its content is video/webm; it is read as that"),
        ("latin caption.mp4", "byte 0xfc in line 1; save it as UTF-8"),
        ("no caption.mp4", "write one into no caption.txt"),
        ("strip.mp4", "576x64 pixels; one side may be at most 8 times the other"),
        ("film.flv", ".flv is not read: convert it"),
    ],
)
def test_the_words_say_what_it_is_and_what_to_do(report, name, message):
    assert message in words(report, name)


def test_the_report_as_json(report):
    found = json.loads(json.dumps(report.to_json()))
    assert found["good"] == len(report.good)
    files = {file["name"]: file for file in found["files"]}
    assert files["good.mp4"] | {"sha256": "", "path": ""} == {
        "name": "good.mp4",
        "path": "",
        "kind": "clip",
        "captions": ["a grey square in the middle, good"],
        "sha256": "",
        "width": 96,
        "height": 64,
        "seconds": 1.25,
        "format": "h264, 16 frames per second, 1.25 s",
        "good": True,
    }
    assert not files["cut.mp4"]["good"]
    windows = {bucket["num_frames"]: bucket["windows"] for bucket in found["buckets"]}
    assert windows == {LENGTH: len(report.good) - 1, 1: 1}


def test_every_kind_of_finding_is_described():
    assert not set(FAULTS) & set(NOTES)
    page = (pathlib.Path(__file__).parents[2] / "docs" / "training-data.md").read_text()
    assert [kind for kind in (*FAULTS, *NOTES) if f"`{kind}`" not in page] == []


@pytest.mark.parametrize("name", ["vp9.webm", "h264.mkv", "front.mp4", "h264.avi"])
def test_a_download_that_was_not_ended(folder, tmp_path, name):
    """Its file has its whole length, zeros at its end: some readers come to an end there."""
    path = tmp_path / name
    if name == "front.mp4":
        make_clip(path, moving(20), "-movflags", "+faststart", rate=str(RATE))
    else:
        shutil.copy(folder / name, path)
    data = path.read_bytes()
    kept = int(len(data) * 0.6)
    path.write_bytes(data[:kept] + bytes(len(data) - kept))
    path.with_suffix(".txt").write_text("a square")
    report = check(list_entries(tmp_path), BUCKETS, workers=0)
    assert {"damaged", "unreadable"} & set(kinds(report, name))
    assert report.good == ()


def test_lines_of_a_manifest_with_several_captions_of_a_clip(folder, tmp_path):
    """The clip is decoded once, and each of its lines is learnt."""
    shutil.copy(folder / "good.mp4", tmp_path)
    lines = [{"file_name": "good.mp4", "text": text} for text in ("a square", "a grey thing")]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    steps = []
    report = check(
        list_entries(tmp_path / "list.jsonl"),
        BUCKETS,
        workers=0,
        on_file=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(0, 1), (1, 1)]
    assert kinds(report, "good.mp4") == ("same-clip",)
    assert [p.entry.caption for p in report.placement.placed] == ["a square", "a grey thing"]
