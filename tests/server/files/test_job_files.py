"""The files of a fleet's jobs: one prefix a job, one part of it a start."""

import asyncio
import dataclasses

import pytest

from server.files.job_files import JobFiles, file_key, upload_key
from server.files.media import FILE_NAMES, FilesLost
from server.files.seam import FileTooLarge, read_part
from server.files.uploads import UploadLost, read_uploads
from wan_tpu.media import Media, digest_of
from wan_tpu.storage.bucket import BucketError, open_bucket

JOB, OTHER = "video_" + "0" * 32, "video_" + "1" * 32
CLIP, PICTURE = b"\0\0\0\x20ftypisom" + b"c" * 99, b"\x89PNG\r\n\x1a\n" + b"p" * 99


@dataclasses.dataclass
class Made:
    id: str
    metadata: dict | None


@pytest.fixture
def bucket(tmp_path):
    return open_bucket(str(tmp_path / "bucket"))


@pytest.fixture
def files(bucket):
    return JobFiles(bucket)


@pytest.fixture
def folder(tmp_path):
    return write_video(tmp_path / "made")


def write_video(folder, begin=b""):
    folder.mkdir()
    for variant, name in FILE_NAMES.items():
        (folder / name).write_bytes(begin + variant.encode() * 9)
    return folder


def run(step):
    return asyncio.run(step)


def keys(bucket):
    return {each.key for each in run(bucket.list(""))}


def test_a_video_is_published_and_read(files, bucket, folder):
    noted = run(files.publish(JOB, 2, folder))
    assert keys(bucket) == {f"videos/{JOB}/2/{name}" for name in FILE_NAMES.values()}
    job = Made(id=JOB, metadata={"start": 2, "files": noted})
    for variant, name in FILE_NAMES.items():
        data = (folder / name).read_bytes()
        assert noted[variant] == {
            "bytes": len(data),
            "sha256": digest_of(data).removeprefix("sha256:"),
        }
        assert run(files.read(job, variant, most=99)) == data
        stored = run(files.open(job, variant))
        assert (stored.size, stored.digest) == (len(data), noted[variant]["sha256"])
        assert run(read_part(stored, 3, 7)) == data[3:7]
    with pytest.raises(FileTooLarge):
        run(files.read(job, "video", most=44))


def test_a_start_is_written_once(files, bucket, folder, tmp_path):
    """Red when a slice that comes back late writes over what another one made."""
    noted = run(files.publish(JOB, 1, folder))
    assert run(files.publish(JOB, 1, folder)) == noted
    other = write_video(tmp_path / "late", b"late")
    with pytest.raises(BucketError, match=f"another {file_key(JOB, 1, 'video')} is there already"):
        run(files.publish(JOB, 1, other))
    run(files.publish(JOB, 2, other))
    job = Made(id=JOB, metadata={"start": 1, "files": noted})
    assert run(files.read(job, "video", most=99)) == b"video" * 9
    run(files.remove_start(JOB, 2))
    assert run(files.read(job, "video", most=99)) == b"video" * 9
    assert len(keys(bucket)) == len(FILE_NAMES)


def test_a_publication_that_broke_off_goes_on(files, bucket, folder):
    assert run(bucket.put(file_key(JOB, 1, "video"), folder / FILE_NAMES["video"]))
    run(files.publish(JOB, 1, folder))
    assert len(keys(bucket)) == len(FILE_NAMES)


def test_what_is_gone_or_damaged_is_lost(files, bucket, folder):
    noted = run(files.publish(JOB, 1, folder))
    job = Made(id=JOB, metadata={"start": 1, "files": noted})
    stored = run(files.open(job, "video"))
    key = file_key(JOB, 1, "video")
    run(bucket.put(key, b"other" * 9, create=False))
    with pytest.raises(FilesLost, match="damaged: it is not what was written"):
        run(files.read(job, "video", most=99))
    run(bucket.put(key, b"short", create=False))
    with pytest.raises(FilesLost, match="cut short while it was read"):
        run(read_part(stored, 0, stored.size))
    with pytest.raises(FilesLost, match="5 bytes are there, 45 were written"):
        run(files.open(job, "video"))
    run(bucket.delete(key))
    for variant in ("video", "thumbnail"):
        for metadata in (None, {}, {"files": noted}, {"start": 2, "files": noted}):
            with pytest.raises(FilesLost, match="is gone"):
                run(files.open(Made(id=JOB, metadata=metadata), variant))
    with pytest.raises(FilesLost, match="is gone"):
        run(read_part(stored, 0, stored.size))


def test_uploads_are_each_jobs_own_and_held_against_their_digest(files, bucket, tmp_path):
    clip, picture = digest_of(CLIP), digest_of(PICTURE)
    run(files.put_uploads([JOB, OTHER], Media.of(CLIP, PICTURE)))
    run(files.put_uploads([JOB, OTHER], Media.of(CLIP, PICTURE)))
    assert keys(bucket) == {upload_key(job, d) for job in (JOB, OTHER) for d in (clip, picture)}
    assert run(files.remove(JOB)) == 2
    job = Made(id=OTHER, metadata=None)
    assert run(files.read_upload(job, clip)) == CLIP
    assert run(files.open_upload(job, picture)).digest == picture.removeprefix("sha256:")
    run(files.fetch_uploads(OTHER, [clip, picture, clip], tmp_path))
    assert dict(read_uploads(tmp_path, {"image": picture, "video": clip})) == {
        picture: PICTURE,
        clip: CLIP,
    }
    run(bucket.put(upload_key(OTHER, clip), CLIP + b"x", create=False))
    with pytest.raises(UploadLost, match="damaged"):
        run(files.fetch_uploads(OTHER, [clip], tmp_path))
    with pytest.raises(UploadLost, match="damaged"):
        run(files.read_upload(job, clip))
    for ask in (
        lambda: files.fetch_uploads(JOB, [clip], tmp_path),
        lambda: files.open_upload(Made(id=JOB, metadata=None), clip),
    ):
        with pytest.raises(UploadLost, match="gone"):
            run(ask())


def test_a_job_is_removed_with_all_of_it(files, bucket, folder):
    run(files.put_uploads([JOB, OTHER], Media.of(CLIP)))
    run(files.publish(JOB, 1, folder))
    run(files.publish(JOB, 12, folder))
    run(bucket.put("videos/not-ours/a", b""))
    run(bucket.put("slices/a.json", b""))
    there = run(files.jobs_there())
    assert set(there) == {JOB, OTHER}
    newest = max(each.modified for each in run(bucket.list(f"videos/{JOB}/")))
    assert (there[JOB].modified, there[JOB].starts) == (newest, {1, 12})
    assert not there[OTHER].starts
    assert run(files.remove(JOB)) == 7
    assert set(run(files.jobs_there())) == {OTHER}
    assert run(files.remove(JOB)) == 0


@pytest.mark.parametrize("job_id", ["", "video_", "../" + JOB, JOB + "/..", JOB.upper()])
def test_ids_and_digests_are_checked_before_they_become_keys(files, job_id, folder, tmp_path):
    for step in (
        lambda: files.remove(job_id),
        lambda: files.publish(job_id, 1, folder),
        lambda: files.put_uploads([job_id], Media.of(CLIP)),
        lambda: files.fetch_uploads(JOB, [job_id], tmp_path),
        lambda: files.publish(JOB, 0, folder),
    ):
        with pytest.raises(AssertionError):
            run(step())
