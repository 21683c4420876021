"""What was left over is carried out: by any server, by two at a time, and once."""

import asyncio
import dataclasses
import time

import pytest

from server.engine.failure import Failure
from server.fleet import sweep
from server.fleet.messages import Note
from server.fleet.store import FleetStore
from server.jobs.job import Job, State, make_id
from tests.server.fleet.api import MODEL, connected
from tests.server.fleet.stand_in import eventually
from wan_tpu.request import VideoRequest

REQUEST = VideoRequest(
    prompt="make", negative_prompt="", width=16, height=16, num_frames=1, fps=8,
    num_inference_steps=4, seed=1,
)  # fmt: skip


@pytest.fixture
def fleet(api_fleet):
    return api_fleet


@pytest.fixture
def at_once(monkeypatch):
    """The sweep waits for nobody."""
    monkeypatch.setattr(sweep, "AGE_SECONDS", 0.0)
    monkeypatch.setattr(sweep, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(sweep, "UNKNOWN_SECONDS", 0.0)


def new_job():
    return Job(id=make_id(), owner="ann", model=MODEL, request=REQUEST, created_at=time.time())


def died(fleet, do):
    """What a server wrote down that ended before it carried anything out."""
    store = FleetStore(fleet.database, timeout_seconds=4)
    try:
        return do(store)
    finally:
        store.close()


def test_what_was_accepted_by_a_server_that_died_is_made(fleet):
    async def run():
        async with fleet.api() as a, fleet.api(), fleet.slice() as slice_:
            job = new_job()
            await asyncio.to_thread(
                died, fleet, lambda store: store.accept("ann", None, lambda *_: [job])
            )
            assert (await a.finish(job)).state == State.COMPLETED
            return slice_.starts, job

    starts, job = asyncio.run(run())
    assert starts == [(job.id, 1)]


def test_what_was_cancelled_and_deleted_by_a_server_that_died_is_so(fleet, at_once):
    """Both servers sweep at the same time, again and again."""

    async def run():
        async with fleet.api() as a, fleet.api() as b, fleet.slice():
            jobs = [(await a.create(f"wait {n}"))[0] for n in range(3)]
            await a.wait(jobs[0], State.IN_PROGRESS)
            await eventually(lambda: all(row["workflow_at"] for row in fleet.rows()))
            await connected(a, b)

            def end(store):
                store.cancel(jobs[0].id, 60)
                store.cancel(jobs[1].id, 60)
                store.delete([jobs[2].id])

            await asyncio.to_thread(died, fleet, end)
            while fleet.rows("cancellations") or fleet.rows("deletions"):
                await asyncio.gather(*(api.jobs.sweep.sweep() for api in (a, b, a, b)))
            for job in jobs:
                while (look := await a.look(job)) is not None and look.ended is None:
                    await asyncio.sleep(0.02)

    asyncio.run(run())
    assert [row["error_code"] for row in fleet.rows()] == [Failure.CANCELLED] * 2


def test_a_start_that_comes_after_the_deletion_does_not_stay(fleet, at_once):
    """A server was about to start the workflow when another deleted the job."""

    async def run():
        async with fleet.api() as a:
            await connected(a)
            job = new_job()
            await a.jobs.sweep.start([job])  # which has no row any more
            await eventually(lambda: not fleet.rows("deletions"))
            assert (await a.look(job)) is None or (await a.look(job)).ended == "terminated"

    asyncio.run(run())


def test_what_expires_goes_by_the_clock_of_the_database(fleet):
    async def run():
        async with fleet.api() as a, fleet.slice():
            (job,), (other,) = await a.create(), await a.create()
            for each in (job, other):
                await a.finish(each)
            fleet.sql(
                "UPDATE jobs SET expires_at = extract(epoch from now()) WHERE id = :i", i=job.id
            )
            assert await a.jobs.find_owned("ann", job.id) is None
            await eventually(lambda: len(fleet.rows()) == 1 and not fleet.rows("deletions"))
            assert await a.jobs.find_owned("ann", other.id) is not None
            return job, other

    job, other = asyncio.run(run())
    assert fleet.files_of(job) == []
    assert len(fleet.files_of(other)) == 3


def test_a_note_that_comes_twice_is_one_and_a_late_one_is_refused(fleet):
    async def run():
        async with fleet.api() as a, fleet.slice() as slice_:
            (job,) = await a.create()
            done = await a.finish(job)
            record = a.jobs._recorder.record
            told = Note(id=job.id, state="completed", attempts=1, metadata=done.metadata)
            assert await record(told)
            order = a.jobs.sweep._order(job)
            late = await slice_.publish(dataclasses.replace(order, start=2))
            assert len(fleet.files_of(job)) == 6
            assert not await record(dataclasses.replace(told, metadata=late))
            for state in ("in_progress", "queued", "failed"):
                assert not await record(Note(id=job.id, state=state, attempts=2))
            assert await a.jobs.find_owned("ann", job.id) == done
            assert a.jobs._metrics.jobs.labels("completed")._value.get() == 1
            return job

    assert {name[0] for name in fleet.files_of(asyncio.run(run()))} == {"1"}


def test_files_that_are_nobodys_go_and_all_others_stay(fleet, at_once):
    async def run():
        async with fleet.api(trash_seconds=0.01) as a, fleet.slice() as slice_:
            (job,), stranger = await a.create(), new_job()
            await a.finish(job)
            for each, start in ((job, 2), (job, 3), (stranger, 1)):
                await slice_.publish(dataclasses.replace(a.jobs.sweep._order(each), start=start))
            (running,) = await a.create("wait")
            await a.wait(running, State.IN_PROGRESS)
            await slice_.publish(dataclasses.replace(a.jobs.sweep._order(running), start=9))
            await a.jobs.sweep.orphans()
            slice_.go.set()
            return job, stranger, running

    job, stranger, running = asyncio.run(run())
    assert {name[0] for name in fleet.files_of(job)} == {"1"}
    assert fleet.files_of(stranger) == []
    assert {name[0] for name in fleet.files_of(running)} >= {"9"}


def test_files_of_a_job_that_is_not_known_stay_for_the_time_of_a_trash(fleet):
    async def run():
        async with fleet.api() as a, fleet.slice() as slice_:
            stranger = new_job()
            await slice_.publish(dataclasses.replace(a.jobs.sweep._order(stranger), start=1))
            await a.jobs.sweep.orphans()
            return stranger

    assert len(fleet.files_of(asyncio.run(run()))) == 3


def test_what_temporal_lost_is_made_and_what_it_was_told_to_end_is_failed(fleet, at_once):
    """By a restored backup of Temporal's, and by somebody in its pages."""

    async def run():
        async with fleet.api() as a:
            lost, ended = (await a.create("make"))[0], (await a.create("wait"))[0]
            await eventually(lambda: all(row["workflow_at"] for row in fleet.rows()))
            client = a.jobs.workflows._client
            await client.get_workflow_handle(ended.id).terminate()
            fleet.sql(
                "UPDATE jobs SET id = :new WHERE id = :old", old=lost.id, new=make_id(ended.id)
            )
            lost = dataclasses.replace(lost, id=fleet.rows()[-1]["id"])
            failed = await a.wait(ended, State.FAILED)
            assert failed.error_code == Failure.INTERRUPTED
            assert "terminated" in failed.error_message
            async with fleet.slice():
                assert (await a.finish(lost)).state == State.COMPLETED

    asyncio.run(run())
