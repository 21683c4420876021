"""A data folder and a database know each other: no start with a stranger loses a file."""

import contextlib
import shutil
import sqlite3
import time

import pytest

from server.files.data_folder import DataFolderError
from server.files.media import FILE_NAMES
from server.jobs.database import Database, StoreError
from server.jobs.job import Job, make_id
from server.jobs.opening import adopt
from server.jobs.schema import downgrade
from server.service import open_service
from server.settings import Settings
from tests.server.postgres import new_database
from wan_tpu.request import VideoRequest

REQUEST = VideoRequest(
    prompt="a red circle", width=64, height=64, num_frames=17, fps=8, num_inference_steps=2
)


@pytest.fixture
def start(tmp_path):
    """A service on a folder, not running; the one before it has ended."""
    with contextlib.ExitStack() as opened:

        def start_(folder="data", **settings):
            opened.close()
            service = open_service(
                Settings(data_dir=tmp_path / folder, min_free_bytes=0, **settings)
            )
            opened.callback(service.jobs.close)
            return service

        yield start_


def complete(service):
    """A completed job with its files."""
    job = Job(id=make_id(), owner="", model="wan-tiny", request=REQUEST, created_at=time.time())
    folder = service.jobs.media.begin(job.id)
    for name in FILE_NAMES.values():
        (folder / name).write_bytes(b"a video")
    files = service.jobs.media.measure(job.id)
    service.jobs.media.publish(job.id)
    job = job.started().completed({"files": files}, keep_seconds=None)
    service.jobs.store.insert(job)
    return job.id


def videos(tmp_path, folder="data"):
    return sorted(path.name for path in (tmp_path / folder / "videos").iterdir())


def test_another_database_is_refused_and_nothing_is_moved(start, tmp_path, caplog):
    """A typing error in the URL, once; then the right one again."""
    job = complete(start())
    typo = f"sqlite:///{tmp_path}/typo.sqlite"
    for _ in range(2):
        with pytest.raises(StoreError, match="do not belong together") as caught:
            start(database_url=typo)
        assert job in str(caught.value)
        assert "WAN_TPU_DATABASE_URL" in str(caught.value)
        assert "python -m server adopt" in str(caught.value)
        assert videos(tmp_path) == [job]
    service = start()
    assert service.jobs.board.find(job).state == "completed"
    assert service.jobs.board.completed_ids() == {job}
    assert "trash" not in caplog.text


def test_a_postgresql_instead_of_sqlite_is_refused(start, tmp_path, postgres):
    job = complete(start())
    with new_database(postgres) as url:
        with pytest.raises(StoreError, match="do not belong together"):
            start(database_url=url)
        assert videos(tmp_path) == [job]
        adopt(Settings(data_dir=tmp_path / "data", database_url=url))
        service = start(database_url=url)
        assert videos(tmp_path) == []
        other = complete(service)
        assert start(database_url=url).jobs.board.completed_ids() == {other}
    with pytest.raises(StoreError, match="do not belong together"):
        start()
    adopt(Settings(data_dir=tmp_path / "data"))
    assert start().jobs.board.completed_ids() == {job}
    assert videos(tmp_path) == [job], "it is back from the trash"


def test_a_database_that_was_emptied_is_refused(start, tmp_path):
    job = complete(start())
    start("elsewhere")
    for path in (tmp_path / "data").glob("jobs.sqlite*"):
        path.unlink()
    with pytest.raises(StoreError, match="does not know 1 videos"):
        start()
    assert videos(tmp_path) == [job]


def test_what_the_database_does_not_know_goes_to_the_trash_and_is_said(start, tmp_path, caplog):
    """A backup of an hour ago: the same database, without the last job."""
    first = complete(start())
    start("elsewhere")
    backup = tmp_path / "backup"
    backup.mkdir()
    for path in (tmp_path / "data").glob("jobs.sqlite*"):
        shutil.copy(path, backup)
    second = complete(start())
    start("elsewhere")
    for path in (tmp_path / "data").glob("jobs.sqlite*"):
        path.unlink()
    for path in backup.iterdir():
        shutil.copy(path, tmp_path / "data")
    caplog.clear()
    service = start()
    assert service.jobs.board.completed_ids() == {first}
    assert videos(tmp_path) == [first]
    (kept,) = (tmp_path / "data" / "trash").iterdir()
    assert kept.name.endswith(f"-videos-{second}")
    assert sorted(path.name for path in kept.iterdir()) == sorted(FILE_NAMES.values())
    (record,) = [r for r in caplog.records if second in r.getMessage()]
    assert record.levelname == "WARNING"


def test_an_empty_folder_for_a_database_with_videos_is_refused(start, postgres):
    with new_database(postgres) as url:
        job = complete(start(database_url=url))
        with pytest.raises(StoreError, match=f"1 videos that it knows do not lie there .{job}"):
            start("empty", database_url=url)
        assert start(database_url=url).jobs.board.completed_ids() == {job}


def test_two_new_ones_need_no_words(start, postgres):
    with new_database(postgres) as url:
        start(database_url=url)
        start("another", database_url=url)
        start("another")


def make_old(tmp_path, url):
    """What the releases before ids leave: no service, no mark."""
    (tmp_path / "data" / "wan-tpu.json").unlink()
    database = Database(url, timeout_seconds=4)
    for _ in ("0003", "0002"):
        downgrade(database)
    database.close()


def test_the_folder_of_the_release_before_is_taken_over(start, tmp_path):
    job = complete(start())
    start("elsewhere")
    make_old(tmp_path, f"sqlite:///{tmp_path}/data/jobs.sqlite")
    stranger = "video_" + "0" * 32
    (tmp_path / "data" / "videos" / stranger).mkdir()
    assert start().jobs.board.completed_ids() == {job}
    assert videos(tmp_path) == [job]


def test_the_folder_of_the_release_before_with_a_wrong_database_is_refused(start, tmp_path):
    job = complete(start())
    start("elsewhere")
    make_old(tmp_path, f"sqlite:///{tmp_path}/data/jobs.sqlite")
    with pytest.raises(StoreError, match="do not belong together"):
        start(database_url=f"sqlite:///{tmp_path}/typo.sqlite")
    assert videos(tmp_path) == [job]


def test_a_folder_of_the_users_is_refused_and_adopted_whole(start, tmp_path):
    clips = tmp_path / "data" / "videos"
    (clips / "my holiday").mkdir(parents=True)
    (clips / "clip1.mp4").write_bytes(b"clip")
    with pytest.raises(DataFolderError, match="was never a server's"):
        start()
    words = adopt(Settings(data_dir=tmp_path / "data"))
    assert "belong together" in words
    job = complete(start())
    start()
    assert videos(tmp_path) == sorted(["clip1.mp4", "my holiday", job])


def test_completed_videos_without_their_files_are_said_and_shown(start, tmp_path, caplog):
    service = start()
    gone, cut, empty, whole = (complete(service) for _ in range(4))
    start("elsewhere")
    folder = tmp_path / "data" / "videos"
    shutil.rmtree(folder / gone)
    (folder / cut / FILE_NAMES["video"]).write_bytes(b"a vi")
    (folder / empty / FILE_NAMES["thumbnail"]).write_bytes(b"")
    caplog.clear()
    service = start()
    said = "".join(r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    for job in (gone, cut, empty):
        assert job in said
        assert b'"status":"completed"' in service.jobs.board.body(job)
        assert b'"code":"files_lost"' in service.jobs.board.body(job)
    assert b'"error":null' in service.jobs.board.body(whole)
    assert whole not in said


def test_an_unreadable_jobs_files_stay(start, tmp_path):
    job = complete(start())
    start("elsewhere")
    connection = sqlite3.connect(tmp_path / "data" / "jobs.sqlite")
    connection.execute("UPDATE jobs SET request = '{}', state = 'archived'")
    connection.commit()
    connection.close()
    service = start()
    assert service.jobs.board.find(job).is_unreadable
    assert videos(tmp_path) == [job]
