"""The files of one slice, as the routes ask for them."""

import asyncio
import dataclasses
import shutil

import pytest

from server.files.media import FILE_NAMES, FilesLost
from server.files.media import Media as VideoFiles
from server.files.seam import FileTooLarge, LocalFiles, read_part
from server.files.uploads import UploadLost, Uploads
from wan_tpu.media import Media, digest_of

CLIP = b"\0\0\0\x20ftypisom" + bytes(range(256)) * 4


@dataclasses.dataclass
class Made:
    id: str
    metadata: dict | None


@pytest.fixture
def files(tmp_path):
    return LocalFiles(VideoFiles(tmp_path, min_free_bytes=0), Uploads(tmp_path))


@pytest.fixture
def made(tmp_path):
    media = VideoFiles(tmp_path, min_free_bytes=0)
    job = Made(id="video_" + "0" * 32, metadata=None)
    folder = media.begin(job.id)
    for variant, name in FILE_NAMES.items():
        (folder / name).write_bytes(variant.encode() * 9)
    job.metadata = {"files": media.measure(job.id)}
    media.publish(job.id)
    return job


def read(files, job, variant="video", most=1 << 20):
    return asyncio.run(files.read(job, variant, most=most))


def test_a_file_is_read_as_it_was_written(files, made):
    for variant in FILE_NAMES:
        stored = asyncio.run(files.open(made, variant))
        assert stored.size == len(variant) * 9
        assert digest_of(read(files, made, variant)) == f"sha256:{stored.digest}"
    stored = asyncio.run(files.open(made, "video"))
    assert asyncio.run(read_part(stored, 5, 12)) == (b"video" * 9)[5:12]
    assert asyncio.run(stored.url(60)) is None


def test_a_file_that_is_not_as_it_was_is_not_given_out(files, made, tmp_path):
    path = tmp_path / "videos" / made.id / FILE_NAMES["video"]
    stored = asyncio.run(files.open(made, "video"))
    with pytest.raises(FileTooLarge) as caught:
        read(files, made, most=44)
    assert caught.value.size == 45
    path.write_bytes(b"other" * 9)
    with pytest.raises(FilesLost, match="damaged: it is not what was written"):
        read(files, made)
    path.write_bytes(b"short")
    with pytest.raises(FilesLost, match="cut short while it was read"):
        asyncio.run(read_part(stored, 0, stored.size))
    with pytest.raises(FilesLost, match="5 bytes are there, 45 were written"):
        read(files, made)
    shutil.rmtree(path.parent)
    with pytest.raises(FilesLost, match="is gone"):
        read(files, made)


def test_an_upload_is_held_against_its_digest(files, made, tmp_path):
    uploads, digest = Uploads(tmp_path), digest_of(CLIP)
    with uploads.keeping(Media.of(CLIP)):
        assert asyncio.run(files.read_upload(made, digest)) == CLIP
        stored = asyncio.run(files.open_upload(made, digest))
        assert (stored.size, stored.digest) == (len(CLIP), digest.removeprefix("sha256:"))
        uploads.path_of(digest).write_bytes(CLIP[:-1] + b"x")
        with pytest.raises(UploadLost, match="damaged"):
            asyncio.run(files.read_upload(made, digest))
        uploads.path_of(digest).unlink()
        with pytest.raises(UploadLost, match="gone"):
            asyncio.run(files.open_upload(made, digest))
