"""Pictures and clips on the command line: what is read, what is refused, what is told."""

import json
import re

import numpy as np
import pytest

from tests.checkpoint_factory import PROMPT
from tests.pipeline.media import make_clip, make_png
from wan_tpu.cli import media_files
from wan_tpu.media import digest_of

CLIP, PNG = make_clip(64, 64, frames=7, fps=8), make_png(64, 64)


@pytest.fixture
def files(tmp_path_factory):
    """A folder of files that are what they seem or not; the command runs in another one."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "clip.mp4").write_bytes(CLIP)
    (folder / "picture.png").write_bytes(PNG)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("This is no clip.")
    (folder / "cut.mp4").write_bytes(CLIP[: len(CLIP) // 2])
    (folder / "folder").mkdir()
    (folder / "large.mp4").write_bytes(CLIP * 2)
    return folder


USAGE = {
    "no such file": (["--video", "none.mp4"], r"--video .*none\.mp4 cannot be read: No such file"),
    "a folder": (["--video", "folder"], r"--video .*folder cannot be read: Is a directory"),
    "an empty file": (["--video", "empty.mp4"], r"--video .*empty\.mp4 is empty"),
    "a text": (["--video", "text.mp4"], "clip"),
    "a cut file": (["--video", "cut.mp4"], "clip"),
    "a picture for a model of text": (["--image", "picture.png"], r"takes text alone, or a video"),
    "a picture as a clip": (["--video", "picture.png"], "clip"),
    "a last picture": (["--last-image", "picture.png"], r"takes text alone, or a video"),
    "strength of nothing": (["--strength", "0.5"], "there is no video"),
    "strength of 0": (["--video", "clip.mp4", "--strength", "0"], "above 0"),
    "strength above 1": (["--video", "clip.mp4", "--strength", "1.5"], "at most 1"),
    "strength that is no number": (["--video", "clip.mp4", "--strength", "nan"], "strength"),
    "strength that leaves no step": (
        ["--video", "clip.mp4", "--strength", "0.1", "--steps", "4"],
        r"at least 0\.25",
    ),
    "more frames than there are": (
        ["--video", "clip.mp4", "--frames", "9"],
        "has 7 frames at 8 .* at most 5",
    ),
    "guidance of a second expert": (["--guidance-scale-2", "3"], "a second transformer"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_one_line_and_exit_code_2(run_here, files, tmp_path, case):
    arguments, expected = USAGE[case]
    arguments = [
        str(files / word) if re.fullmatch(r"folder|.*\.(mp4|png)", word) else word
        for word in arguments
    ]
    code, out, error = run_here("generate", PROMPT, *arguments)
    assert code == 2, error
    assert re.search(expected, error), error
    assert out == ""
    assert len([line for line in error.splitlines() if not line.startswith("[")]) == 1
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_too_large_is_not_read_to_its_end(run_here, files, monkeypatch):
    monkeypatch.setattr(media_files, "MAX_MEDIA_BYTES", len(CLIP))
    code, _, error = run_here("generate", PROMPT, "--video", str(files / "large.mp4"))
    assert code == 2
    assert f"has more than {len(CLIP)} bytes" in error


def test_a_video_of_a_clip_and_its_story(run, files, tmp_path):
    """In the length and the shape of the clip, near to it, and told so."""
    done = run(
        "generate", PROMPT, "-o", "out.npy", "--video", str(files / "clip.mp4"), "--steps", "8",
        "--strength", "0.25",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "out.npy").shape == (5, 64, 64, 3)
    story = json.loads((tmp_path / "out.json").read_text())
    assert story["request"]["video"] == digest_of(CLIP)
    assert (story["request"]["strength"], story["request"]["num_frames"]) == (0.25, 5)
    assert story["pictures"] == {"video": "64x64 as it is"}
    assert story["steps"] == {"transformer": 2}
    assert {"encode", "denoise", "decode"} <= story["seconds"].keys()
