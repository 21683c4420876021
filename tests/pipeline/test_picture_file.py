"""Pictures of one frame: every format, complete or absent."""

import errno
import os

import numpy as np
import pytest
from PIL import Image

from tests.image.pictures import corner_names, corners
from wan_tpu.errors import InputError, OutputError
from wan_tpu.image.picture import read_picture
from wan_tpu.pipeline.picture_file import PICTURE_SUFFIXES, PictureWriter, is_picture


def write(path, frames, **size):
    size = size or {"width": 48, "height": 32}
    with PictureWriter(path, **size) as writer:
        writer.write(frames[:0])
        writer.write(frames)


@pytest.mark.parametrize("suffix", [*PICTURE_SUFFIXES, ".PNG", ".Jpeg"])
def test_a_frame_becomes_the_picture_that_its_suffix_says(tmp_path, suffix):
    path = tmp_path / f"fox{suffix}"
    assert is_picture(path)
    write(path, corners()[None])
    kinds = {".png": "PNG", ".webp": "WEBP"}
    with Image.open(path) as image:
        assert image.format == kinds.get(suffix.lower(), "JPEG")
    found = read_picture(path.read_bytes())
    assert corner_names(found) == "rgwb"
    if suffix.lower() == ".png":
        np.testing.assert_array_equal(found, corners())
    # WebP halves the colours' resolution, which shows at the edges between pure ones alone.
    flat = np.abs(found.astype(int) - corners())[4:12, 4:20]
    assert flat.max() <= 3
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("name", ["fox.mp4", "fox.gif", "fox", ".png"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"a picture must end in \.png, \.jpg, \.jpeg, \.webp"):
        PictureWriter(tmp_path / name, width=8, height=8)


def test_sizes_that_a_format_has_no_room_for(tmp_path):
    PictureWriter(tmp_path / "a.png", width=70_000, height=8)
    PictureWriter(tmp_path / "a.webp", width=16_383, height=8)
    for name in ("a.webp", "a.jpg"):
        with pytest.raises(InputError, match=r"pixels a side, got 70000x8; use \.png"):
            PictureWriter(tmp_path / name, width=70_000, height=8)


def interrupt_after(writer):
    writer.write(corners()[None])
    raise KeyboardInterrupt


def test_an_error_leaves_the_old_picture(tmp_path):
    path = tmp_path / "fox.png"
    path.write_bytes(b"old")
    writer = PictureWriter(path, width=48, height=32)
    with pytest.raises(KeyboardInterrupt), writer:
        interrupt_after(writer)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["fox.png"]


def test_nothing_is_written_without_a_frame(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*fox\.png: there is no frame"):
        write(tmp_path / "fox.png", corners()[None][:0])
    assert not list(tmp_path.iterdir())


def test_an_aborted_picture_leaves_nothing(tmp_path):
    """What a second Ctrl-C does before the process leaves for good."""
    with PictureWriter(tmp_path / "fox.png", width=48, height=32) as writer:
        writer.write(corners()[None])
        writer.abort()
        assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_of_one_line(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError) as caught:
        write(tmp_path / "fox.png", corners()[None])
    assert str(caught.value) == f"cannot write {tmp_path}/fox.png: No space left on device"
    assert not list(tmp_path.iterdir())


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to("real.png")
    write(tmp_path / "link.png", corners()[None])
    assert (tmp_path / "link.png").is_symlink()
    np.testing.assert_array_equal(read_picture((tmp_path / "real.png").read_bytes()), corners())
