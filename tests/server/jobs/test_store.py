"""What survives, on each database."""

import dataclasses
import time

import alembic.autogenerate
import alembic.migration
import pytest
import sqlalchemy as sa

from server.engine.failure import Failure
from server.jobs.job import Job, make_id
from server.jobs.database import StoreError, StoreRefused
from server.jobs.store import AT_ONCE, Store
from server.jobs.tables import metadata
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
    with pytest.raises(StoreError, match="another server uses the .*database"):
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
        context = alembic.migration.MigrationContext.configure(connection)
        assert alembic.autogenerate.compare_metadata(context, metadata) == []
    engine.dispose()


def test_a_database_of_a_newer_version_is_left_alone(open_store, database):
    open_store().close()
    engine = sa.create_engine(database)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(StoreError, match="newer one"):
        open_store()
