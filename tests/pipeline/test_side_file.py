"""The file beside a video: ours may be replaced, nobody else's, and it is known before the work."""

import json
import os

import pytest

from wan_tpu.errors import OutputError
from wan_tpu.pipeline.side_file import (
    WRITTEN_BY,
    check_side_file,
    free_name,
    side_file_of,
    write_side_file,
)

STORY = {"request": {"prompt": "a fox"}, "seed": 0, "versions": {"wan_tpu": "0.1.0"}}


@pytest.fixture
def video(tmp_path):
    return tmp_path / "fox.mp4"


def test_ours_names_its_video_and_is_replaced(video):
    write_side_file(video, STORY)
    video.touch()
    side = side_file_of(video)
    assert side.name == "fox.json"
    assert json.loads(side.read_text()) == {"written_by": WRITTEN_BY, "video": "fox.mp4"} | STORY
    write_side_file(video, STORY | {"seed": 1})
    assert json.loads(side.read_text())["seed"] == 1
    assert sorted(path.name for path in video.parent.iterdir()) == ["fox.json", "fox.mp4"]


@pytest.mark.parametrize(
    "content",
    [
        b'{"name": "fox", "legs": 4}',
        b"[]",
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[" * 100_000,
        b'{"video": "fox.mp4"}',
        b'{"written_by": "wan-tpu generate", "video": 3}',
        b'{"request": {}, "versions": {"other": "1"}}',
        b" " * (2**20 + 1),
    ],
)
def test_a_file_of_the_users_is_refused_with_a_way_out(video, content):
    side = side_file_of(video)
    side.write_bytes(content)
    for call in (check_side_file, lambda video: write_side_file(video, STORY)):
        with pytest.raises(OutputError, match=r"not wan-tpu's; take another name.*fox-2\.mp4$"):
            call(video)
    assert side.read_bytes() == content
    assert list(video.parent.iterdir()) == [side]


@pytest.mark.parametrize("other", ["fox.npy", "fox.MP4"])
def test_two_videos_do_not_share_one(video, other):
    other = video.with_name(other)
    other.touch()
    write_side_file(other, STORY)
    with pytest.raises(OutputError, match=rf"it tells how .*/{other.name} was made; .*fox-2\.mp4"):
        check_side_file(video)
    other.unlink()
    write_side_file(video, STORY)
    assert json.loads(side_file_of(video).read_text())["video"] == "fox.mp4"


def test_one_that_does_not_say_of_which_is_that_of_the_video_that_is_there(video):
    side_file_of(video).write_text(json.dumps(STORY))
    check_side_file(video)
    video.with_name("fox.npy").touch()
    with pytest.raises(OutputError, match=r"it tells how .*fox\.npy was made"):
        check_side_file(video)
    video.touch()
    check_side_file(video)


def test_places_where_it_cannot_be(video):
    side = side_file_of(video)
    side.mkdir()
    with pytest.raises(OutputError, match=r"cannot write .*fox\.json: it exists and is not a file"):
        check_side_file(video)
    side.rmdir()
    os.mkfifo(side)
    with pytest.raises(OutputError, match="it exists and is not a file"):
        check_side_file(video)
    side.unlink()
    side.symlink_to("gone/deep.json")
    with pytest.raises(OutputError, match=r"a link to nothing; take another name"):
        check_side_file(video)
    side.unlink()
    side.write_text(json.dumps({"written_by": WRITTEN_BY, "video": "fox.mp4"}))
    side.chmod(0o444)
    with pytest.raises(OutputError, match="read-only"):
        check_side_file(video)
    long = video.with_name("x" * 251 + ".mp4")  # 255 bytes, and its side file 256
    with pytest.raises(OutputError, match="File name too long"):
        check_side_file(long)


def test_a_link_to_ours_stays_a_link(video, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    write_side_file(kept / "fox.mp4", STORY)
    side_file_of(video).symlink_to(kept / "fox.json")
    write_side_file(video, STORY | {"seed": 5})
    assert side_file_of(video).is_symlink()
    assert json.loads((kept / "fox.json").read_text())["seed"] == 5


def test_names_without_text(tmp_path):
    video = tmp_path / os.fsdecode(b"f\xffx.mp4")
    for seed in (1, 2):
        write_side_file(video, STORY | {"seed": seed})
        video.touch()
    assert json.loads(side_file_of(video).read_bytes())["seed"] == 2


def test_the_first_free_name(video):
    assert free_name(video).name == "fox-2.mp4"
    video.with_name("fox-2.json").touch()
    video.with_name("fox-3.mp4").symlink_to("nowhere")
    assert free_name(video).name == "fox-4.mp4"
