"""`wan-tpu compare`: what it prints of real clips, and of what cannot be compared."""

import json
import re

import numpy as np
import pytest

from tests.image.test_similarity import ffmpeg_psnr
from wan_tpu.cli.chart import chart
from wan_tpu.image.video import read_video
from wan_tpu.pipeline.video_file import VideoWriter


def moving(noise=0, num_frames=9, size=(64, 48)):
    width, height = size
    frames = np.full((num_frames, height, width, 3), (40, 60, 90), np.uint8)
    for number, frame in enumerate(frames):
        frame[16:32, 4 * number : 4 * number + 16] = 230
    shift = np.random.default_rng(3).integers(-noise, noise + 1, frames.shape)
    return np.clip(frames + shift, 0, 255).astype(np.uint8)


def write(path, frames):
    with VideoWriter(path, fps=8, width=frames.shape[2], height=frames.shape[1]) as writer:
        writer.write(frames)


@pytest.fixture
def clips(tmp_path):
    write(tmp_path / "a.mp4", moving())
    write(tmp_path / "b.mp4", moving(noise=30))
    return tmp_path


def test_clips_as_ffmpeg_measures_them(run_here, clips):
    code, out, _ = run_here("compare", "a.mp4", "b.mp4", "--json")
    assert code == 0
    report = json.loads(out)
    first, second = (read_video(clips / name, 8, 9) for name in ("a.mp4", "b.mp4"))
    each, average = ffmpeg_psnr(first, second, clips)
    assert report["psnr"] == pytest.approx(average, abs=5e-6)
    assert [frame["psnr"] for frame in report["frames"]] == pytest.approx(each, abs=0.005)
    assert {name: report[name] for name in ("width", "height", "num_frames", "equal")} == {
        "width": 64, "height": 48, "num_frames": 9, "equal": False,
    }  # fmt: skip
    assert 0 < report["ssim"] < 1


def test_the_lines_for_people(run_here, tmp_path):
    first, second = moving(), moving(noise=30)
    second[:3], second[5] = first[:3], 255 - first[5]
    write(tmp_path / "a.npy", first)
    write(tmp_path / "b.npy", second)
    code, out, _ = run_here("compare", "a.npy", "b.npy")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "a.npy, b.npy: 9 frames of 64x48"
    assert re.fullmatch(r"PSNR +[\d.]+ dB  lowest [\d.]+, frame 5", lines[1])
    assert re.fullmatch(r"SSIM +[\d.]+  lowest -?[\d.]+, frame 5", lines[2])
    assert lines[3].endswith("3 of 9 frames equal")
    top = lines[lines.index("PSNR in dB, frame by frame") + 1]
    assert top.startswith("   equal |███▇▇ ")


def test_equal_videos_are_said_to_be(run_here, clips):
    write(clips / "c.npy", read_video(clips / "a.mp4", 8, 9))
    for other in ("a.mp4", "c.npy"):
        code, out, _ = run_here("compare", "a.mp4", other)
        assert (code, out.splitlines()[1:]) == (0, ["equal: every pixel of every frame"])
    report = json.loads(run_here("compare", "a.mp4", "a.mp4", "--json")[1])
    assert (report["equal"], report["psnr"], report["ssim"]) == (True, None, 1.0)


def test_a_plot_is_a_picture(run_here, clips):
    pytest.importorskip("matplotlib")
    assert run_here("compare", "a.mp4", "b.mp4", "--plot", "p.png")[0] == 0
    assert (clips / "p.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run_here("compare", "a.mp4", "b.mp4", "--plot", "p.pdf")
    assert (code, "write p.png" in err) == (2, True), err


def test_what_cannot_be_compared_is_one_line(run_here, clips):
    write(clips / "long.mp4", moving(num_frames=13))
    write(clips / "wide.mp4", moving(size=(96, 48)))
    (clips / "text.mp4").write_text("hello")
    np.save(clips / "odd.npy", np.zeros((3, 4), np.float32))
    for other, words in {
        "long.mp4": "a.mp4 has 9 frames of 64x48, and long.mp4 has 13 frames of 64x48",
        "wide.mp4": "wide.mp4 has 9 frames of 96x48",
        "none.mp4": "none.mp4 cannot be read: No such file",
        "text.mp4": "text.mp4 cannot be read: the clip is neither",
        "odd.npy": "odd.npy cannot be read: it holds float32 [3, 4]",
    }.items():
        code, out, err = run_here("compare", "a.mp4", other)
        assert (code, out, err.count("\n")) == (2, "", 1), err
        assert words in err


@pytest.mark.parametrize("damaged", [0, 1])
@pytest.mark.parametrize("kind", ["none", "text", "broken"])
def test_the_file_that_is_wrong_is_named_and_the_other_is_not(run_here, clips, kind, damaged):
    """Red when an error of one file passes through the other's reader."""
    if kind == "text":
        (clips / "text.mp4").write_text("hello")
    if kind == "broken":  # its frames, not its index: it opens, and fails while it is decoded
        whole = (clips / "b.mp4").read_bytes()
        begin = whole.index(b"mdat") + 4
        (clips / "broken.mp4").write_bytes(whole[:begin] + b"\xff" * 2000 + whole[begin + 2000 :])
    names = ["a.mp4"]
    names.insert(damaged, f"{kind}.mp4")
    code, out, err = run_here("compare", *names)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith(f"wan-tpu: {kind}.mp4 cannot be read: "), err
    assert err.count("cannot be read") == 1


def test_a_chart_shows_the_lowest_of_many_and_plain_letters_where_it_must():
    drawn = chart([3.0, 1.0, 2.0, 3.0], width=2, height=2)
    assert drawn == "       2 | █\n       1 |▁█\n".replace(" █\n", " ▇\n")
    drawn = chart([1.0, float("inf")], width=9, height=2, encoding="ascii")
    assert drawn == "   equal | #\n       1 |##\n"
