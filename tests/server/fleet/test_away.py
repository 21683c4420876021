"""PostgreSQL, Temporal or the bucket away: nothing accepted is lost, and whoever asks is told."""

import asyncio
import contextlib

import pytest
import sqlalchemy as sa

from server.errors import ApiError
from server.jobs.database import StoreUnavailable
from server.jobs.job import State
from tests.server.fleet.api import ApiFleet, connected
from tests.server.fleet.stand_in import eventually
from tests.server.pictures import picture
from tests.server.postgres import Postgres, new_database
from wan_tpu.media import Media


@pytest.fixture
def fleet(api_fleet):
    return api_fleet


@pytest.fixture(scope="module")
def struck():
    """A PostgreSQL that things are done to."""
    with contextlib.closing(Postgres()) as postgres:
        yield postgres


@pytest.fixture
def struck_fleet(struck, fleet_url, tmp_path):
    with new_database(struck.url) as database:
        yield ApiFleet(fleet_url, database, tmp_path)


def test_without_postgresql_jobs_go_on_and_requests_are_told(struck, struck_fleet):
    async def run():
        async with (
            struck_fleet.api(database_timeout_seconds=2) as a,
            struck_fleet.slice() as slice_,
        ):
            (job,) = await a.create("wait")
            await a.wait(job, State.IN_PROGRESS)
            await asyncio.to_thread(struck.stop)
            with pytest.raises(ApiError) as refused:
                await a.create()
            assert (refused.value.status, refused.value.code) == (503, "database_unavailable")
            with pytest.raises(StoreUnavailable):
                await a.jobs.find_owned("ann", job.id)
            await eventually(lambda: not a.jobs.is_available)
            assert "database" in a.jobs.missing[0]
            assert a.jobs.fatal is None
            slice_.go.set()
            await eventually(lambda: slice_.ended)
            await asyncio.to_thread(struck.start)
            await eventually(lambda: a.jobs.is_available)
            done = await a.finish(job)
            assert await a.create()
            return done

    assert asyncio.run(run()).state == State.COMPLETED


def test_a_postgresql_that_does_not_answer_keeps_nobody_waiting(struck, struck_fleet):
    async def run():
        async with struck_fleet.api() as a:
            (job,) = await a.create("nobody makes it")
            a.jobs._calls._timeout_seconds = 1  # shorter than what a busy machine takes to accept
            await asyncio.to_thread(struck.freeze)
            try:
                asked = [a.jobs.find_owned("ann", job.id) for _ in range(20)]
                asked += [a.create() for _ in range(20)]
                outcomes = await asyncio.gather(*asked, return_exceptions=True)
            finally:
                await asyncio.to_thread(struck.thaw)
            assert {type(each) for each in outcomes} == {StoreUnavailable, ApiError}
            await eventually(lambda: a.jobs.is_available)
            # Of what was refused nothing is left, were it only a moment later.
            while [row["id"] for row in struck_fleet.rows()] != [job.id]:
                await asyncio.sleep(0.1)

    asyncio.run(run())


def test_an_acceptance_without_an_answer_is_looked_up(fleet, monkeypatch):
    """The line breaks after the commit: the client hears that it was taken."""

    async def run():
        async with fleet.api() as a:
            accept = a.jobs._store.accept

            def and_break(*arguments, **others):
                accept(*arguments, **others)
                raise StoreUnavailable("the line is cut")

            monkeypatch.setattr(a.jobs._store, "accept", and_break)
            (job,) = await a.create()
            return job

    assert asyncio.run(run()).id == fleet.rows()[0]["id"]


def test_without_temporal_jobs_are_taken_and_wait(temporal, fleet):
    async def run():
        async with fleet.api() as a, fleet.slice():
            await connected(a)
            await asyncio.to_thread(temporal.kill)
            try:
                jobs = [(await a.create(str(n)))[0] for n in range(3)]
                await eventually(lambda: any("Temporal" in each for each in a.jobs.waits_for))
                assert a.jobs.is_available
                assert not a.jobs.missing  # else whoever balances the load would take no more jobs
                assert (await a.body(jobs[0]))["status"] == "queued"
                cancelled = await a.jobs.cancel(jobs[2].id)
                assert cancelled.state == State.FAILED
            finally:
                await asyncio.to_thread(temporal.start)
            for job in jobs[:2]:
                assert (await a.finish(job)).state == State.COMPLETED
            await eventually(lambda: not a.jobs.waits_for)
            assert await a.jobs.find_owned("ann", jobs[2].id) == cancelled

    asyncio.run(run())


def test_a_server_starts_before_temporal_does(postgres, tmp_path):
    async def run(database):
        fleet = ApiFleet("temporal://127.0.0.1:1/default", database, tmp_path)
        async with fleet.api() as a:
            assert await a.create()
            assert "Temporal" in a.jobs.waits_for[0]

    with new_database(postgres) as database:
        asyncio.run(run(database))


def test_without_the_bucket_what_needs_it_is_refused_and_the_rest_is_not(fleet):
    media = Media.of(picture())
    (digest,) = media

    async def run():
        async with fleet.api() as a:
            fleet.bucket.rename(fleet.folder / "elsewhere")
            fleet.bucket.write_bytes(b"no folder")
            with pytest.raises(ApiError) as refused:
                await a.create(media=media, image=digest)
            assert (refused.value.status, refused.value.code) == (503, "files_unavailable")
            (job,) = await a.create()
            await a.jobs.delete([job.id])
            await eventually(lambda: any("bucket" in each for each in a.jobs.waits_for))
            assert [row["job_id"] for row in fleet.rows("deletions")] == [job.id]
            fleet.bucket.unlink()
            (fleet.folder / "elsewhere").rename(fleet.bucket)
            await eventually(lambda: not a.jobs.waits_for)
            await eventually(lambda: not fleet.rows("deletions"))

    asyncio.run(run())
    assert fleet.rows() == []


def test_a_server_that_ends_leaves_the_jobs_to_the_others(fleet):
    async def run():
        async with fleet.api() as a, fleet.slice() as slice_:
            async with fleet.api() as b:
                await connected(a, b)
                (job,) = await b.create("wait")
                await b.wait(job, State.IN_PROGRESS)
                await b.jobs.drain()
                with pytest.raises(ApiError, match="shutting down"):
                    await b.create()
                assert (await b.body(job))["status"] == "in_progress"
            slice_.go.set()
            assert (await a.finish(job)).state == State.COMPLETED

    asyncio.run(run())


def test_no_line_stays_open(fleet, postgres):
    """A server that has ended lets a database be dropped, and a server of one slice have it."""

    async def run():
        async with fleet.api() as a:
            await a.create()

    asyncio.run(run())
    admin = sa.create_engine(postgres, poolclass=sa.NullPool)
    name = sa.make_url(fleet.database).database
    with admin.connect() as connection:
        lines = sa.text("SELECT count(*) FROM pg_stat_activity WHERE datname = :name")

        def none():
            return connection.execute(lines, {"name": name}).scalar() == 0

        asyncio.run(eventually(none))
