"""Files that are complete or absent."""

import hashlib
import time

import numpy as np
import pytest
from PIL import Image

from server.files.media import FILE_NAMES, FilesLost, KnownJobs, Media
from server.files.writer import MediaFiles
from wan_tpu.pipeline.video_file import read_frames


@pytest.fixture
def media(tmp_path):
    return Media(tmp_path, min_free_bytes=0)


def frames(num_frames, width=64, height=48):
    """Frames that brighten from first to last."""
    values = np.linspace(0, 255, num_frames).astype(np.uint8)
    return np.broadcast_to(values[:, None, None, None], (num_frames, height, width, 3)).copy()


def write(folder, num_frames, **sizes):
    video = frames(num_frames, **sizes)
    _, height, width, _ = video.shape
    files = MediaFiles(folder, fps=8, width=width, height=height, num_frames=num_frames)
    with files:
        for chunk in np.array_split(video, 3):
            files.write(chunk)
    return files.sheet


def fail_after(_):
    raise RuntimeError


def opened(path):
    with Image.open(path) as image:
        image.load()
        return image


@pytest.mark.parametrize(
    ("num_frames", "columns", "rows", "cells"),
    [(1, 1, 1, 1), (5, 5, 1, 5), (17, 5, 4, 17), (81, 5, 5, 25)],
)
def test_three_files(tmp_path, num_frames, columns, rows, cells):
    sheet = write(tmp_path, num_frames)
    assert sheet == {"columns": columns, "rows": rows, "frames": cells}
    assert read_frames(tmp_path / FILE_NAMES["video"]).shape == (num_frames, 48, 64, 3)
    image = opened(tmp_path / FILE_NAMES["spritesheet"]).convert("L")
    assert image.size == (columns * 64, rows * 48)
    brightness = [
        image.getpixel((i % columns * 64 + 32, i // columns * 48 + 24)) for i in range(cells)
    ]
    assert brightness == sorted(brightness)
    assert brightness[-1] > 250 or num_frames == 1, "the last frame is on the sheet"


def test_large_frames_are_shrunk(tmp_path):
    write(tmp_path, 5, width=1280, height=720)
    assert opened(tmp_path / FILE_NAMES["thumbnail"]).size == (320, 180)
    assert opened(tmp_path / FILE_NAMES["spritesheet"]).size == (5 * 160, 90)


def test_a_failure_leaves_no_video(tmp_path):
    files = MediaFiles(tmp_path, fps=8, width=64, height=48, num_frames=5)
    with pytest.raises(RuntimeError), files:
        fail_after(files.write(frames(5)))
    assert list(tmp_path.iterdir()) == []


def job_id(number):
    return f"video_{number:032x}"


def finished(media, number, data=b"a video"):
    """A job's files, in their place; what was noted of them."""
    folder = media.begin(job_id(number))
    for name in FILE_NAMES.values():
        (folder / name).write_bytes(data)
    files = media.measure(job_id(number))
    media.publish(job_id(number))
    return files


def known(*, with_files=(), ended=(), unfinished=()):
    groups = {"with_files": with_files, "ended": ended, "unfinished": unfinished}
    return KnownJobs(**{name: set(map(job_id, ids)) for name, ids in groups.items()})


def names(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_publishing_shows_all_files_at_once(media, tmp_path):
    folder = media.begin(job_id(1))
    for name in FILE_NAMES.values():
        (folder / name).write_bytes(b"x")
        with pytest.raises(FilesLost, match="gone"):
            media.open(job_id(1), "video", None)
    files = media.measure(job_id(1))
    media.publish(job_id(1))
    assert media.is_whole(job_id(1), files)
    assert not folder.exists()
    for path in (tmp_path / "videos").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_new_attempt_begins_with_an_empty_folder(media):
    (media.begin("video_1") / "left over").touch()
    assert list(media.begin("video_1").iterdir()) == []


def test_the_noted_digest_is_the_files(media):
    files = finished(media, 1)
    file = media.open(job_id(1), "thumbnail", files)
    assert file.digest == hashlib.sha256(file.path.read_bytes()).hexdigest()
    assert files["thumbnail"]["bytes"] == file.status.st_size == len(b"a video")


@pytest.mark.parametrize("rest", [b"", b"a vid", b"a video and more"])
def test_a_file_of_another_length_is_not_whole(media, tmp_path, rest):
    files = finished(media, 1)
    (tmp_path / "videos" / job_id(1) / FILE_NAMES["video"]).write_bytes(rest)
    with pytest.raises(FilesLost, match=f"damaged: {len(rest)} bytes are there, 7 were written"):
        media.open(job_id(1), "video", files)
    assert not media.is_whole(job_id(1), files)
    assert media.open(job_id(1), "thumbnail", files)


def test_an_empty_file_of_a_release_that_noted_nothing_is_not_whole(media, tmp_path):
    finished(media, 1)
    assert media.open(job_id(1), "video", None).digest is None
    (tmp_path / "videos" / job_id(1) / FILE_NAMES["video"]).write_bytes(b"")
    with pytest.raises(FilesLost):
        media.open(job_id(1), "video", None)


def test_what_nobody_knows_is_moved_and_what_is_not_ours_is_not_touched(media, tmp_path):
    for number in (1, 2, 3, 4):
        finished(media, number)
    for number in (5, 6):
        media.begin(job_id(number))
    videos, partial = tmp_path / "videos", tmp_path / "partial"
    (videos / "my holiday").mkdir()
    (videos / "stray file").touch()
    (videos / job_id(9)).symlink_to(videos / job_id(1))
    (partial / "mine").mkdir()
    moved = media.tidy(known(with_files=[1], ended=[2], unfinished=[3, 5]))
    assert sorted(moved) == [job_id(3), job_id(4), job_id(6)]
    assert names(videos) == sorted([job_id(1), job_id(9), "my holiday", "stray file"])
    assert names(partial) == ["mine"]
    trash = tmp_path / "trash"
    assert [name.partition("-")[2] for name in names(trash)] == [
        f"partial-{job_id(6)}", f"videos-{job_id(3)}", f"videos-{job_id(4)}",
    ]  # fmt: skip
    (found,) = trash.glob(f"*{job_id(4)}")
    assert names(found) == sorted(FILE_NAMES.values())


def test_the_trash_is_emptied_after_its_time_and_of_ours_alone(tmp_path):
    media = Media(tmp_path, min_free_bytes=0, trash_seconds=100)
    finished(media, 1)
    finished(media, 2)
    media.tidy(known(with_files=[2]))
    (tmp_path / "trash" / "kept by hand").mkdir()
    now = time.time()
    assert media.empty_trash(now + 90) == []
    (gone,) = media.empty_trash(now + 102)
    assert gone.endswith(job_id(1))
    assert names(tmp_path / "trash") == ["kept by hand"]


def test_a_deletion_that_was_cut_short_is_finished_or_undone(media, tmp_path):
    for number in (1, 2):
        finished(media, number)
        media.set_aside(job_id(number))
    assert media.job_folders() == set()
    assert media.tidy(known(with_files=[1])) == []
    assert names(tmp_path / "videos") == [job_id(1)]
    assert names(tmp_path / "deleting") == []
    assert names(tmp_path / "trash") == []


def test_a_second_attempt_does_not_overwrite_files_that_are_there(media, tmp_path):
    finished(media, 1, b"the first")
    files = finished(media, 1, b"the second")
    assert media.open(job_id(1), "video", files).path.read_bytes() == b"the second"
    (aside,) = (tmp_path / "trash").iterdir()
    assert (aside / FILE_NAMES["video"]).read_bytes() == b"the first"


def test_room_on_the_disk(tmp_path):
    assert Media(tmp_path, min_free_bytes=1).has_room()
    assert not Media(tmp_path, min_free_bytes=1 << 62).has_room()
