"""The jobs of a fleet: PostgreSQL, Temporal and the bucket are real, slices go by a script."""

import asyncio
import json

import pytest

from server.engine.failure import Failure
from server.errors import ApiError
from server.jobs.job import State
from tests.server.fleet.api import ApiFleet, connected
from tests.server.fleet.stand_in import eventually
from tests.server.pictures import picture
from tests.server.postgres import new_database
from wan_tpu.media import Media


@pytest.fixture
def fleet(api_fleet):
    return api_fleet


async def delete_three(fleet):
    """Deletes a job that runs, one that waits, and one that is made; returns them."""
    async with fleet.api() as a, fleet.api() as b, fleet.slice():
        (made,) = await a.create()
        await a.finish(made)
        (running,) = await a.create("wait")
        await a.wait(running, State.IN_PROGRESS)
        (waiting,) = await a.create("make later")
        jobs = [made, running, waiting]
        await eventually(lambda: all(row["workflow_at"] for row in fleet.rows()))
        await connected(b)
        await b.jobs.delete([job.id for job in jobs])
        assert await a.jobs.page("ann", after=None, limit=9, newest_first=True) == ([], False)
        assert await b.jobs.find(running.id) is None
        await eventually(lambda: not fleet.rows("deletions"))
        return jobs


@pytest.fixture(scope="module")
def deleted(temporal, postgres, tmp_path_factory):
    """A fleet, and jobs that were deleted from it: first of all, for Temporal takes its time."""
    with new_database(postgres) as database:
        fleet = ApiFleet(temporal.new_fleet(), database, tmp_path_factory.mktemp("deleted"))
        yield fleet, asyncio.run(delete_three(fleet))


def test_a_deleted_job_has_no_files_any_more(deleted):
    fleet, jobs = deleted
    assert [fleet.files_of(job) for job in jobs] == [[], [], []]
    assert fleet.rows() == []


def test_two_servers_say_the_same_from_acceptance_to_the_end(fleet):
    async def run():
        async with fleet.api() as a, fleet.api() as b, fleet.slice() as slice_:
            (job,) = await a.create("wait")
            assert await b.jobs.find_owned("ann", job.id) == job  # at once, without a mirror
            assert await b.jobs.find_owned("bob", job.id) is None
            assert await b.jobs.page("ann", after=None, limit=5, newest_first=True) == (
                [job],
                False,
            )
            running = [await api.sees(job, stage="denoise", step=2, steps=4) for api in (a, b)]
            assert {body["status"] for body in running} == {"in_progress"}
            assert fleet.rows()[0]["slice"] == "slice-a"
            changed = b.jobs.next_change()
            slice_.go.set()
            done = await a.finish(job)
            assert await b.jobs.find_owned("ann", job.id) == done
            await changed.wait()
            assert await b.body(job) == await a.body(job)
            assert [a.jobs.mirror.find(job.id), b.jobs.mirror.find(job.id)].count(None) > 0
            file = await b.jobs.files.open(done, "video")
            assert file.size == done.metadata["files"]["video"]["bytes"]
            return done

    done = asyncio.run(run())
    assert (done.state, done.attempts, done.metadata["start"]) == (State.COMPLETED, 1, 1)
    assert done.expires_at - done.finished_at == 86_400
    (row,) = fleet.rows()
    assert row["file_bytes"] == sum(f["bytes"] for f in done.metadata["files"].values())
    assert row["slice"] is None
    assert row["workflow_at"] is not None


def test_places_in_the_queue_are_fair_and_alike_everywhere(fleet):
    async def run():
        async with fleet.api() as a, fleet.api() as b:
            first, second, third = [(await a.create(str(n), owner="ann"))[0] for n in range(3)]
            (other,) = await b.create("other", owner="bob")
            for api in (a, b):
                for job, place in ((first, 1), (second, 3), (third, 4)):
                    await api.sees(job, queue_position=place, seconds_left=None)
                assert (await api.body(other, "bob"))["queue_position"] == 2
                assert (await api.jobs.queue()).length == 4

    asyncio.run(run())


def test_a_row_of_a_newer_version_wakes_nobody_again_and_again(fleet):
    async def run():
        async with fleet.api() as a:
            (job,) = await a.create()
        fleet.sql("UPDATE jobs SET version = 99")
        async with fleet.api() as b:
            await b.jobs.mirror.refresh()
            read, rows = [], b.jobs.mirror._upkeep.rows
            b.jobs.mirror._upkeep.rows = lambda ids: read.append(ids) or rows(ids)
            await b.jobs.mirror.refresh()
            await b.jobs.mirror.refresh()
            assert not any(job.id in ids for ids in read)

    asyncio.run(run())


def test_how_long_it_takes_is_learnt_and_slices_share_what_waits(fleet):
    async def run():
        async with fleet.api() as a, fleet.slice() as slice_:
            a.jobs.mirror._count_slices = lambda model: 2
            await a.finish((await a.create())[0])
            (first,) = await a.create("wait 0")
            # Of two that are accepted at once either may be taken up first.
            await a.sees(first, status="in_progress", seconds_left=2.0)
            jobs = [(await a.create(f"wait {n}"))[0] for n in (1, 2)]
            await a.sees(jobs[0], queue_position=1, seconds_left=3.0)
            await a.sees(jobs[1], queue_position=2, seconds_left=5.0)
            slice_.go.set()

    asyncio.run(run())


def test_limits_hold_for_all_servers_together(fleet):
    async def run():
        async with fleet.api(max_queued_jobs=7) as a, fleet.api(max_queued_jobs=7) as b:
            asked = [(a, b)[n % 2].create(f"job {n}") for n in range(20)]
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            refused = [each for each in outcomes if isinstance(each, ApiError)]
            assert {each.code for each in refused} == {"queue_full"}
            ids = [each[0].id for each in outcomes if not isinstance(each, Exception)]
            assert len(ids) == len(set(ids)) == 7
            standing = await a.jobs.standing("ann")
            assert (standing.waiting, standing.waiting_of_owner) == (7, 7)
            return ids

    ids = asyncio.run(run())
    assert [row["id"] for row in fleet.rows()] == sorted(ids)


def test_a_key_gives_one_group_of_jobs_whichever_servers_are_asked(fleet):
    async def run():
        async with fleet.api() as a, fleet.api() as b:
            asked = [(a, b)[n % 2].create("same", key="once", number=3) for n in range(10)]
            groups = await asyncio.gather(*asked)
            assert len({tuple(job.id for job in group) for group in groups}) == 1
            assert [job.request.seed for job in groups[0]] == [1, 2, 3]
            assert await b.jobs.group_of(groups[0][0]) == groups[0]
            with pytest.raises(ApiError, match="another request"):
                await b.create("another", key="once")
            await b.create("same", key="once", owner="bob")

    asyncio.run(run())
    assert len(fleet.rows()) == 4


def test_pages_are_by_id_in_both_orders(fleet):
    async def run():
        async with fleet.api() as a:
            jobs = [(await a.create(str(n)))[0] for n in range(5)]
            await a.create(owner="bob")

            async def page(after, limit, *, newest_first):
                found, more = await a.jobs.page(
                    "ann", after=after, limit=limit, newest_first=newest_first
                )
                return [jobs.index(job) for job in found], more

            assert await page(None, 2, newest_first=True) == ([4, 3], True)
            assert await page(jobs[3].id, 3, newest_first=True) == ([2, 1, 0], False)
            assert await page(jobs[0].id, 3, newest_first=False) == ([1, 2, 3], True)
            await a.jobs.delete([jobs[1].id])
            assert await page(jobs[1].id, 3, newest_first=False) == ([2, 3, 4], False)

    asyncio.run(run())


def test_uploads_are_there_before_the_job_and_go_if_it_is_not_taken(fleet):
    media = Media.of(picture())
    (digest,) = media

    async def run():
        async with fleet.api(max_queued_jobs=2) as a:
            empty = a.jobs._store.ask("ann", None)
            jobs = await a.create(key="once", number=2, media=media, image=digest)
            for job in jobs:
                assert fleet.files_of(job) == [f"uploads/{digest.removeprefix('sha256:')}"]
                assert await a.jobs.files.read_upload(job, digest) == media[digest]
            assert await a.create(key="once", number=2, media=media, image=digest) == jobs
            for _ in ("before its uploads", "after them, by others that came meanwhile"):
                with pytest.raises(ApiError, match="queue is full"):
                    await a.create(media=media, image=digest)
                a.jobs._store.ask = lambda *_: empty
            standing = await a.jobs.standing("ann")
            assert standing.upload_bytes == 2 * len(media[digest])
            return jobs

    jobs = asyncio.run(run())
    uploads = list((fleet.bucket / "videos").rglob(f"{digest.removeprefix('sha256:')}"))
    assert {path.parents[1].name for path in uploads} == {job.id for job in jobs}


def test_a_cancelled_job_is_so_at_once_and_nothing_comes_of_its_start(fleet):
    """The slice does not hear of it, and makes the video all the same."""

    async def run():
        async with fleet.api() as a, fleet.api() as b, fleet.slice() as slice_:
            (job,) = await a.create("wait, stubborn")
            await a.wait(job, State.IN_PROGRESS)
            cancelled = await b.jobs.cancel(job.id)
            assert (cancelled.state, cancelled.error_code) == (State.FAILED, Failure.CANCELLED)
            assert await a.jobs.find_owned("ann", job.id) == cancelled
            await eventually(lambda: job.id in slice_.ended)
            await a.finish((await a.create())[0])
            await eventually(lambda: not fleet.rows("cancellations"))
            while (await a.look(job)).ended is None:
                await asyncio.sleep(0.02)
            assert await a.jobs.find_owned("ann", job.id) == cancelled
            assert await a.jobs.cancel(job.id) == cancelled
            assert b.jobs._metrics.jobs.labels("cancelled")._value.get() == 1
            return job

    assert fleet.files_of(asyncio.run(run())) == []


def test_a_job_that_was_made_before_its_cancellation_stays_made(fleet):
    async def run():
        async with fleet.api() as a, fleet.slice():
            (job,) = await a.create()
            done = await a.finish(job)
            assert await a.jobs.cancel(job.id) == done
            assert await a.jobs.cancel("video_" + "0" * 32) is None

    asyncio.run(run())
    assert fleet.rows("cancellations") == []


def test_the_oldest_jobs_without_a_video_make_place(fleet):
    async def run():
        async with fleet.api(max_finished_jobs_per_key=2) as a, fleet.slice():
            (made,) = await a.create()
            await a.finish(made)
            failed = [(await a.create(f"wait {n}"))[0] for n in range(3)]
            for job in failed:
                await a.jobs.cancel(job.id)
            (new,) = await a.create()
            return made, failed, new

    made, failed, new = asyncio.run(run())
    assert {row["id"] for row in fleet.rows()} >= {made.id, new.id}
    assert not {row["id"] for row in fleet.rows()} & {job.id for job in failed[:2]}


def test_polls_cost_temporal_nothing_and_postgresql_little(fleet):
    async def run():
        async with fleet.api() as a, fleet.slice() as slice_:
            (job,) = await a.create("wait")
            await a.sees(job, stage="denoise")
            queries = []
            find = a.jobs._store.find
            a.jobs._store.find = lambda ids: queries.append(ids) or find(ids)
            before = a.jobs.workflows.calls
            for _ in range(20):
                bodies = await asyncio.gather(*(a.body(job) for _ in range(50)))
                assert all(json.loads(json.dumps(body))["stage"] == "denoise" for body in bodies)
            # A second of the mirror and of the sweep costs a handful, however many poll.
            assert a.jobs.workflows.calls - before < 100
            assert len(queries) <= 40
            slice_.go.set()

    asyncio.run(run())


@pytest.mark.slow
def test_temporal_forgets_a_deleted_job(deleted):
    """Last: it does so half a minute later."""
    fleet, jobs = deleted

    async def run():
        async with fleet.api() as a:
            await connected(a)
            for job in jobs:
                while await a.look(job) is not None:
                    await asyncio.sleep(0.2)

    asyncio.run(run())
