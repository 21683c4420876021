"""The folder of uploads: complete or absent, as long as somebody needs them."""

import concurrent.futures
import os

import pytest

from server.files.media import KnownJobs
from server.files.media import Media as VideoFiles
from server.files.uploads import UploadLost, Uploads, read_uploads
from wan_tpu.media import Media, digest_of

FIRST, SECOND = b"first picture", b"second picture"
NOBODY = frozenset()


@pytest.fixture
def uploads(tmp_path):
    return Uploads(tmp_path)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def name_of(data):
    return digest_of(data).removeprefix("sha256:")


def put(uploads, *contents):
    with uploads.keeping(Media.of(*contents)):
        pass


def test_what_was_put_there_is_read(uploads):
    put(uploads, FIRST, SECOND)
    wanted = {"image": digest_of(FIRST), "last_image": digest_of(SECOND)}
    assert dict(read_uploads(uploads.folder, wanted)) == dict(Media.of(FIRST, SECOND))
    assert names(uploads.folder) == sorted(map(name_of, (FIRST, SECOND)))
    assert uploads.size_of(digest_of(FIRST)) == len(FIRST)
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in uploads.folder.iterdir())


def test_one_that_is_gone_is_named_by_its_role(uploads):
    with pytest.raises(UploadLost, match="the last_image of this video is gone from the server's"):
        read_uploads(uploads.folder, {"last_image": digest_of(FIRST)})


@pytest.mark.parametrize("content", [b"", b"other picture", FIRST[:-1]])
def test_one_that_is_damaged_is_not_used(uploads, content):
    put(uploads, FIRST)
    (uploads.folder / name_of(FIRST)).write_bytes(content)
    with pytest.raises(UploadLost, match="the image of this video is damaged: bytes that should"):
        read_uploads(uploads.folder, {"image": digest_of(FIRST)})
    put(uploads, FIRST)
    assert dict(read_uploads(uploads.folder, {"image": digest_of(FIRST)}))


def test_one_is_removed_when_nobody_needs_it(uploads):
    put(uploads, FIRST, SECOND)
    both = [digest_of(FIRST), digest_of(SECOND)]
    uploads.remove(both, lambda digest: digest == both[1])
    assert names(uploads.folder) == [name_of(SECOND)]
    uploads.remove(both, lambda digest: False)
    uploads.remove(both, lambda digest: False)
    assert names(uploads.folder) == []


def test_one_that_is_just_being_accepted_is_not_removed(uploads):
    """Two jobs with one picture: the first is deleted while the second is being stored."""
    with uploads.keeping(Media.of(FIRST)):
        with uploads.keeping(Media.of(FIRST)):
            pass
        uploads.remove([digest_of(FIRST)], lambda digest: False)
        assert names(uploads.folder) == [name_of(FIRST)]
    uploads.remove([digest_of(FIRST)], lambda digest: False)
    assert names(uploads.folder) == []


def test_a_start_tidies_up(tmp_path):
    uploads = Uploads(tmp_path)
    put(uploads, FIRST, SECOND)
    (uploads.folder / f"{name_of(FIRST)}.{'0' * 16}.part").write_bytes(b"half")
    (uploads.folder / "notes.txt").write_text("mine")
    again = Uploads(tmp_path)
    assert again.tidy({digest_of(FIRST)}) == [name_of(SECOND)]
    assert names(uploads.folder) == sorted([name_of(FIRST), "notes.txt"])
    assert [name.endswith(f"-uploads-{name_of(SECOND)}") for name in names(tmp_path / "trash")]


def test_one_in_the_trash_comes_back_and_else_goes_in_time(tmp_path):
    uploads = Uploads(tmp_path)
    put(uploads, FIRST, SECOND)
    uploads.tidy(NOBODY)
    assert names(uploads.folder) == []
    uploads.tidy({digest_of(FIRST)})
    assert names(uploads.folder) == [name_of(FIRST)]
    videos = VideoFiles(tmp_path, min_free_bytes=0, trash_seconds=0)
    videos.tidy(KnownJobs(with_files=NOBODY, ended=NOBODY, unfinished=NOBODY))
    (gone,) = videos.empty_trash(2**40)
    assert name_of(SECOND) in gone
    assert names(tmp_path / "trash") == []


def test_a_full_disk_leaves_nothing(uploads, monkeypatch):
    """Red when a part of a file stays, or the name of one that is not whole."""

    def full(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), uploads.keeping(Media.of(FIRST)):
        raise AssertionError("nothing may be accepted")
    assert names(uploads.folder) == []


def test_many_threads_with_one_picture(uploads):
    def work():
        for _ in range(50):
            with uploads.keeping(Media.of(FIRST)):
                read_uploads(uploads.folder, {"image": digest_of(FIRST)})
            uploads.remove([digest_of(FIRST)], lambda digest: False)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for each in [pool.submit(work) for _ in range(4)]:
            each.result()
    assert names(uploads.folder) == []
