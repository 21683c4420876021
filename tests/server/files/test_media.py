"""Files that are complete or absent."""

import numpy as np
import pytest
from PIL import Image

from server.files.media import FILE_NAMES, Media
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


def test_publishing_shows_all_files_at_once(media):
    folder = media.begin("video_1")
    for name in FILE_NAMES.values():
        (folder / name).write_bytes(b"x")
        assert not media.path("video_1", "video").exists()
    media.publish("video_1")
    assert all(media.path("video_1", variant).exists() for variant in FILE_NAMES)
    assert not folder.exists()


def test_a_new_attempt_begins_with_an_empty_folder(media):
    (media.begin("video_1") / "left over").touch()
    assert list(media.begin("video_1").iterdir()) == []


def test_orphans_go_and_nothing_else(media, tmp_path):
    for job in ("video_1", "video_2"):
        media.begin(job)
        media.publish(job)
    media.begin("video_3")
    (tmp_path / "videos" / "stray file").touch()
    (tmp_path / "partial" / "link").symlink_to(tmp_path / "videos" / "video_1")
    gone = media.remove_orphans({"video_1"})
    assert sorted(gone) == ["link", "stray file", "video_2", "video_3"]
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["video_1"]


def test_room_on_the_disk(tmp_path):
    assert Media(tmp_path, min_free_bytes=1).has_room()
    assert not Media(tmp_path, min_free_bytes=1 << 62).has_room()
