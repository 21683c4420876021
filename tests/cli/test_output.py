"""Where `wan-tpu generate` writes: nothing of the user's is replaced that was not named."""

import json

import pytest

from tests.damaged_models import copy_wan_tiny, edit_tensor
from wan_tpu.image.picture import read_picture

PROMPT = "a red circle moving right on a black background"


def generate(run, *arguments):
    return run("generate", PROMPT, "--steps", "1", *arguments)


@pytest.mark.parametrize("way", ["file", "folder", "another video's"])
def test_a_side_file_in_the_way_is_said_before_the_work(run_here, tmp_path, way):
    side = tmp_path / "fox.json"
    if way == "folder":
        side.mkdir()
    elif way == "file":
        side.write_text('{"legs": 4}')
    else:
        side.write_text(json.dumps({"written_by": "wan-tpu generate", "video": "fox.npy"}))
        (tmp_path / "fox.npy").touch()
    before = sorted(tmp_path.iterdir())
    code, out, error = generate(run_here, "-o", "fox.mp4")
    assert (code, out) == (1, "")
    assert error.startswith("wan-tpu: cannot write fox.json: ")
    assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_without_a_name_nothing_is_replaced(run, tmp_path):
    (tmp_path / "video.mp4").write_bytes(b"mine")
    (tmp_path / "video-2.json").write_text("mine, too")
    done = generate(run)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "video-3.mp4\n"
    assert (tmp_path / "video.mp4").read_bytes() == b"mine"
    assert (tmp_path / "video-2.json").read_text() == "mine, too"
    assert (tmp_path / "video-3.json").exists()


def test_a_suffix_in_capitals_and_a_seed_that_is_drawn(run, tmp_path):
    done = generate(run, "-o", "fox.MP4", "--seed", "-1", "--size", "64*64")
    assert done.returncode == 0, done.stderr
    assert b"ftyp" in (tmp_path / "fox.MP4").read_bytes()[:16]
    seed = json.loads((tmp_path / "fox.json").read_text())["seed"]
    assert 0 < seed < 2**32  # 0 once in four thousand million
    assert f"seed {seed}\n" in done.stderr


def test_one_frame_is_a_picture(run, tmp_path):
    """With its story beside it, as a video's."""
    done = generate(run, "--frames", "1", "-o", "fox.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fox.png\n"
    assert read_picture((tmp_path / "fox.png").read_bytes()).shape == (64, 64, 3)
    story = json.loads((tmp_path / "fox.json").read_text())
    assert (story["video"], story["request"]["num_frames"]) == ("fox.png", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fox.json", "fox.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "fox.png"], "fox.png is a picture, of one frame, and the video has the model's"),
        (["-o", "fox.JPG", "--frames", "5"], "has 5 frames: add --frames 1, or write fox.mp4"),
        (["-o", "fox.gif"], "must end in .mp4 or .npy, or for one frame in .png or .jpg or .jpeg"),
        (["-o", "fox", "--frames", "1"], "got 'fox'; write fox.mp4, of which ffmpeg makes any"),
    ],
)
def test_suffixes_that_do_not_fit_are_one_line(run_here, tmp_path, arguments, message):
    code, out, err = run_here("generate", PROMPT, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not list(tmp_path.iterdir())


def test_numbers_that_are_none_are_no_video(run, tmp_path):
    model = copy_wan_tiny(tmp_path / "model")

    def spoil(tensor):
        tensor[0] = float("nan")
        return tensor

    edit_tensor(model, "vae", "decoder.conv_out.bias", spoil)
    (tmp_path / "old.mp4").write_bytes(b"old")
    done = generate(run, "--model", str(model), "-o", "old.mp4")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "wan-tpu: the model gave NaN or infinite numbers in decode, from frame 1"
    )
    assert "Traceback" not in done.stderr
    assert (tmp_path / "old.mp4").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "old.mp4"]


@pytest.mark.parametrize("prompt", ["&nbsp;", "\ufeff", "\u200b", "\x01"])
def test_prompts_of_nothing(run_here, prompt):
    code, _, error = run_here("generate", prompt)
    assert (code, error.count("\n")) == (2, 1)
    assert "prompt is empty" in error


@pytest.mark.parametrize(
    "home", ["/proc/nope", pytest.param("/etc/hostname", marks=pytest.mark.slow)]
)
def test_a_home_that_cannot_be_used_costs_the_cache(run, tmp_path, home):
    env = {"HOME": home, "XDG_CACHE_HOME": ""}
    done = run("generate", PROMPT, "--steps", "1", "-o", "out.npy", env=env)
    assert done.returncode == 0, done.stderr
    assert f"cannot keep compiled programs in {home}/.cache" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out.npy").exists()
