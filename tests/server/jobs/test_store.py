"""What survives, on each database."""

import contextlib
import dataclasses
import json
import os
import shutil
import sqlite3
import time

import alembic.autogenerate
import alembic.migration
import pytest
import sqlalchemy as sa

from server.engine.failure import Failure
from server.jobs.database import OwnershipLost, StoreError, StoreRefused, StoreUnavailable
from server.jobs.job import Job, State, make_id
from server.jobs.store import AT_ONCE, Store
from server.jobs.tables import JOB_VERSION, metadata
from server.jobs.video_object import encode_video, video_object
from tests.server.postgres import new_database
from tests.server.running import wait_for
from wan_tpu.request import VideoRequest

JOB = Job(
    id=make_id(),
    owner="someone",
    model="wan-tiny",
    request=VideoRequest(
        prompt="雪中的狐狸 🦊 'quoted' \\ \n two lines",
        negative_prompt="",
        width=64,
        height=64,
        num_frames=17,
        fps=8,
        num_inference_steps=12,
        guidance_scale=1.5,
        flow_shift=5.0,
        seed=2**63 - 1,
    ),
    created_at=time.time(),
    idempotency_key="once",
    request_digest="0" * 64,
)


@pytest.fixture
def open_store(database):
    opened = []

    def open_():
        opened.append(Store(database, timeout_seconds=4))
        return opened[-1]

    yield open_
    for store in opened:
        store.close()


def test_a_job_comes_back_as_it_was(open_store):
    store = open_store()
    store.insert(JOB)
    assert store.load() == [JOB]
    started = JOB.started()
    store.update(started)
    assert store.load() == [started]
    done = started.completed({"seconds": {"text": 0.25}, "layout": "single"}, keep_seconds=60)
    store.update(done)
    assert store.load() == [done]


def test_failures_come_back(open_store):
    store = open_store()
    failed = JOB.started().failed(Failure.OUT_OF_MEMORY, "too much", keep_seconds=60)
    store.insert(failed)
    assert store.load() == [failed]


def test_jobs_come_oldest_first_and_can_be_forgotten(open_store):
    store = open_store()
    jobs = [JOB]
    for _ in range(AT_ONCE + 20):
        newer = dataclasses.replace(JOB, id=make_id(jobs[-1].id), idempotency_key=None)
        jobs.append(newer)
    for job in reversed(jobs):
        store.insert(job)
    assert store.load() == jobs
    store.delete([job.id for job in jobs[1:]])
    assert store.load() == [JOB]


def test_an_idempotency_key_is_taken_once_for_each_owner(open_store):
    store = open_store()
    store.insert(JOB)
    store.insert(dataclasses.replace(JOB, id=make_id(JOB.id), owner="another"))
    with pytest.raises(StoreRefused):
        store.insert(dataclasses.replace(JOB, id=make_id()))


def test_a_second_server_is_refused(open_store):
    open_store()
    with pytest.raises(StoreError, match=r"another server uses the .*database"):
        open_store()


def test_jobs_survive_the_store(database):
    for expected in ([], [JOB]):
        store = Store(database, timeout_seconds=4)
        assert store.load() == expected
        if not expected:
            store.insert(JOB)
        store.close()


def test_migrations_make_the_tables_of_the_code(open_store, database):
    """Red when a column is added to one and not to the other."""
    open_store()
    engine = sa.create_engine(database)
    with engine.connect() as connection:
        # Indexes are for PostgreSQL alone, which the comparison does not understand.
        has_them = engine.dialect.name == "postgresql"
        options = {"include_object": lambda _, __, kind, *more: kind != "index" or has_them}
        context = alembic.migration.MigrationContext.configure(connection, opts=options)
        assert alembic.autogenerate.compare_metadata(context, metadata) == []
    engine.dispose()


def run_sql(database, *statements):
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sa.text(statement))
    engine.dispose()


NEWER = "UPDATE alembic_version SET version_num = '9999'"


def test_a_newer_database_that_this_version_cannot_use_is_left_alone(open_store, database):
    open_store().close()
    run_sql(database, NEWER, "UPDATE service SET oldest_reader = 9999")
    with pytest.raises(StoreError, match="newer one"):
        open_store()


def test_a_newer_database_that_only_has_more_is_used(open_store, database):
    """What a release meets that was gone back to."""
    store = open_store()
    store.insert(JOB)
    store.close()
    run_sql(
        database, NEWER, "ALTER TABLE jobs ADD COLUMN stars INTEGER", "CREATE TABLE more (id INT)"
    )
    store = open_store()
    assert store.load() == [JOB]
    assert store.update(JOB.started())


def test_the_database_of_the_release_before_is_reached_and_left(open_store, database):
    """Up, down and up again; the jobs stay, and the older release can read them."""
    store = open_store()
    store.insert(JOB)
    store.downgrade()
    store.close()
    engine = sa.create_engine(database)
    with engine.connect() as connection:
        assert "deletions" not in sa.inspect(connection).get_table_names()
        assert connection.execute(sa.text("SELECT * FROM alembic_version")).scalar() == "0002"
    engine.dispose()
    assert open_store().load() == [JOB]


def test_a_server_whose_database_was_taken_does_not_write(open_store, database):
    """Red when a lock alone keeps others out: it is gone here, and nobody has told."""
    store = open_store()
    store.insert(JOB)
    run_sql(database, "UPDATE service SET epoch = epoch + 1")
    newer = dataclasses.replace(JOB, id=make_id(JOB.id), idempotency_key=None)
    for write in (
        lambda: store.insert(newer),
        lambda: store.update(JOB.started()),
        lambda: store.delete([JOB.id]),
        lambda: store.rewrite([newer]),
        store.check,
    ):
        with pytest.raises(OwnershipLost, match="another server"):
            write()
    assert store.load() == [JOB]


def test_another_database_in_the_same_place_is_not_written(open_store, database):
    store = open_store()
    run_sql(database, "UPDATE service SET database_id = 'another'")
    with pytest.raises(OwnershipLost):
        store.insert(JOB)


def test_a_row_that_vanished_is_said(open_store, database):
    store = open_store()
    assert not store.update(JOB)
    store.insert(JOB)
    run_sql(database, "DELETE FROM jobs")
    assert not store.update(JOB.started())
    assert store.find(JOB.id) is None


def test_jobs_that_never_expire_come_back_so(open_store, database):
    """Earlier releases wrote infinity."""
    store = open_store()
    done = JOB.started().completed({}, keep_seconds=None)
    store.insert(done)
    assert store.load() == [done]
    infinity = "9e999" if database.startswith("sqlite") else "'Infinity'"
    run_sql(database, f"UPDATE jobs SET expires_at = {infinity}")
    assert store.load() == [done]
    json.loads(encode_video(video_object(done)), parse_constant=pytest.fail)


STRANGE = {
    "a new field of requests": 'request = replace(request, \'"seed"\', \'"mask": null, "seed"\')',
    "a new state": "state = 'paused'",
    "a newer version": f"version = {JOB_VERSION + 1}",
    "no JSON": "request = 'nothing'",
    "JSON of another kind": "request = '[1]'",
    "a scheduler of later": "request = replace(request, 'scheduler\": null', 'scheduler\": 5')",
    "no size": "request = replace(request, '\"width\": 64', '\"width\": null')",
}


@pytest.mark.parametrize("change", STRANGE.values(), ids=STRANGE)
def test_a_row_that_cannot_be_read_is_shown_and_stays(open_store, database, change):
    store = open_store()
    other = dataclasses.replace(JOB, id=make_id(JOB.id), idempotency_key=None)
    store.insert(JOB)
    store.insert(other)
    run_sql(database, f"UPDATE jobs SET {change} WHERE id = '{JOB.id}'")
    shown, second = store.load()
    assert second == other
    assert shown.is_unreadable
    assert (shown.id, shown.owner, shown.state) == (JOB.id, JOB.owner, State.FAILED)
    video = json.loads(encode_video(video_object(shown)))
    assert video["error"]["code"] == "unreadable"


def test_what_is_finished_is_read_whatever_a_newer_version_added(open_store, database):
    store = open_store()
    store.insert(JOB.started().completed({"layout": "single"}, keep_seconds=60))
    failed = dataclasses.replace(JOB, id=make_id(JOB.id), idempotency_key=None)
    store.insert(failed.started().failed(Failure.TIMEOUT, "slow", keep_seconds=60))
    run_sql(
        database,
        f"UPDATE jobs SET {STRANGE['a new field of requests']}, version = 7",
        "UPDATE jobs SET error_code = 'moderated' WHERE error_code IS NOT NULL",
    )
    completed, other = store.load()
    assert not completed.is_unreadable
    assert completed.request == JOB.request
    assert other.error_code == "moderated"


def test_a_row_that_is_no_job_is_left_alone(open_store, database):
    store = open_store()
    store.insert(JOB)
    store.insert(dataclasses.replace(JOB, id=make_id(JOB.id), idempotency_key=None))
    run_sql(database, f"UPDATE jobs SET id = 'video_zzz' WHERE id = '{JOB.id}'")
    assert len(store.load()) == 1


WRONG = ["foo://bar", "mysql://u@h/x", "not a url", "", "sqlite://", "sqlite:///:memory:",
         "sqlite:////nowhere/at/all.sqlite", "postgresql+asyncpg://h/x", "postgresql://h:port/x",
         "sqlite:///file:x?mode=memory&uri=true"]  # fmt: skip


@pytest.mark.parametrize("url", WRONG)
def test_a_url_of_no_use_is_said_in_a_line(url):
    with pytest.raises(StoreError) as caught:
        Store(url, timeout_seconds=4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_postgres_is_spelt_as_providers_do(scheme):
    """Nobody listens at port 1; the password is nobody's business."""
    with pytest.raises(StoreUnavailable) as caught:
        Store(f"{scheme}://me:secret@127.0.0.1:1/x", timeout_seconds=4)
    assert "refused" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_damaged_file_is_said_in_a_line(tmp_path):
    path = tmp_path / "jobs.sqlite"
    path.write_bytes(b"noise" * 1000)
    with pytest.raises(StoreError, match=r"jobs\.sqlite: file is not a database"):
        Store(f"sqlite:///{path}", timeout_seconds=4)
    assert path.read_bytes() == b"noise" * 1000


def by_link(path):
    link = path.with_name("link.sqlite")
    link.symlink_to(path)
    return f"sqlite:///{link}"


def by_hard_link(path):
    link = path.with_name("hard.sqlite")
    link.hardlink_to(path)
    return f"sqlite:///{link}"


NAMES = {
    "the same": lambda path: f"sqlite:///{path}",
    "relative": lambda path: f"sqlite:///{os.path.relpath(path)}",
    "dots": lambda path: f"sqlite:///{path.parent}/./../{path.parent.name}/{path.name}",
    "a link": by_link,
    "a hard link": by_hard_link,
    "a URI": lambda path: f"sqlite:///file:{path}?uri=true",
    "pysqlite": lambda path: f"sqlite+pysqlite:///{path}",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_sqlite_file_has_one_server_by_whatever_name(tmp_path, name):
    path = tmp_path / "shared.sqlite"
    with contextlib.closing(Store(f"sqlite:///{path}", timeout_seconds=4)) as store:
        url = name(path)
        with pytest.raises(StoreError, match="another server uses the SQLite database"):
            Store(url, timeout_seconds=4)
        store.insert(JOB)
    with contextlib.closing(Store(url, timeout_seconds=4)) as store:
        assert store.load() == [JOB]


def test_a_sqlite_file_that_is_replaced_is_not_written(tmp_path):
    """As a restored backup does, or an editor; the lock is on the old one."""
    path = tmp_path / "jobs.sqlite"
    with contextlib.closing(Store(f"sqlite:///{path}", timeout_seconds=4)) as store:
        store.insert(JOB)
        copy = path.with_name("copy")
        shutil.copy(path, copy)
        copy.rename(path)
        with pytest.raises(OwnershipLost, match="removed or replaced"):
            store.update(JOB.started())


def test_a_database_is_for_its_user_alone(tmp_path):
    path = tmp_path / "jobs.sqlite"
    path.touch(0o644)
    with contextlib.closing(Store(f"sqlite:///{path}", timeout_seconds=4)) as store:
        store.insert(JOB)
        modes = {each.name: each.stat().st_mode & 0o777 for each in tmp_path.iterdir()}
    assert set(modes.values()) == {0o600}
    assert {"jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite-shm"} <= modes.keys()


def test_a_locked_file_is_unavailable_within_the_time(tmp_path):
    path = tmp_path / "jobs.sqlite"
    with contextlib.closing(Store(f"sqlite:///{path}", timeout_seconds=1)) as store:
        other = sqlite3.connect(path)
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="locked"):
            store.insert(JOB)
        assert time.monotonic() - began < 10
        other.rollback()
        other.close()
        store.insert(JOB)


def test_another_line_that_was_left_holding_the_lock_is_ended(postgres):
    """A line that broke without a word keeps its lock, until its owner ends its backend."""
    with new_database(postgres) as url:
        store = Store(url, timeout_seconds=4)
        store.insert(JOB)
        left = store._lock._connection
        store._lock._connection = None
        wait_for(lambda: checks(store))
        assert store.update(JOB.started())
        left.invalidate()
        left.close()
        store.close()


def checks(store):
    try:
        store.check()
    except StoreUnavailable:
        return False
    return store.losses
