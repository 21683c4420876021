"""Jobs in memory and what happens to them when the database does not do as it is told.

A real store on a real file; what goes wrong is done to the file by another connection.
"""

import asyncio
import contextlib
import dataclasses
import gc
import json
import sqlite3
import time
import tracemalloc

import pytest

from server.engine.failure import Failure
from server.engine.messages import Progress
from server.jobs.board import Board
from server.jobs.database import OwnershipLost, StoreUnavailable
from server.jobs.job import Job, State, make_id
from server.jobs.shelf import Bodies
from server.jobs.store import Store
from wan_tpu.request import VideoRequest

REQUEST = VideoRequest(
    prompt="a red circle", width=64, height=64, num_frames=17, fps=8, num_inference_steps=2
)


@pytest.fixture
def open_board(tmp_path):
    with contextlib.ExitStack() as opened:

        def open_(*, is_whole=lambda job: True, **settings):
            url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
            store = opened.enter_context(contextlib.closing(Store(url, timeout_seconds=1)))
            settings = {"keep_seconds": 60, "max_attempts": 3, **settings}
            board = Board(store, timeout_seconds=1, **settings)
            board.load(store.load(), is_whole)
            return board

        yield open_


@pytest.fixture
def run_sql(tmp_path):
    """Changes the database behind the server's back."""

    def run(*statements):
        connection = sqlite3.connect(tmp_path / "jobs.sqlite")
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    return run


def make_job(key=None, owner=""):
    return lambda newest: Job(
        id=make_id(newest),
        owner=owner,
        model="wan-tiny",
        request=REQUEST,
        created_at=time.time(),
        idempotency_key=key,
    )


def status(board, job):
    return json.loads(board.body(job.id))["status"]


def test_a_waiting_row_that_vanished_costs_its_job_alone(open_board, run_sql):
    async def scenario():
        board = open_board()
        gone, kept = await board.accept(make_job()), await board.accept(make_job())
        run_sql(f"DELETE FROM jobs WHERE id = '{gone.id}'")
        assert await board.claim(board.queue.order()[0]) is None
        assert board.find(gone.id) is None
        assert board.queue.order() == [kept.id]
        assert (await board.claim(kept.id)).state == State.IN_PROGRESS
        await board.close()

    asyncio.run(scenario())


def test_progress_stays_while_complete_files_get_their_place(open_board):
    """Red when a client sees 99 %, then 0 %, then the end."""

    async def scenario():
        board = open_board()
        job = await board.accept(make_job())
        await board.claim(job.id)
        board.report(job.id, Progress(job=job.id, stage="decode", done=1, total=1, seconds=1.0))
        before = json.loads(board.body(job.id))
        assert before["progress"] > 90
        assert await board.note_made(job.id, {})
        after = json.loads(board.body(job.id))
        assert [after[name] for name in ("progress", "stage")] == [before["progress"], "decode"]
        assert await board.requeue(job.id)
        assert json.loads(board.body(job.id))["progress"] == 0
        await board.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "end",
    [
        lambda board, job: board.complete(job.id, {}),
        lambda board, job: board.note_made(job.id, {}),
        lambda board, job: board.fail(job.id, Failure.TIMEOUT, "slow"),
        lambda board, job: board.requeue(job.id),
        lambda board, job: board.cancel(job.id),
    ],
)
def test_a_running_row_that_vanished_ends_the_job(open_board, run_sql, end):
    async def scenario():
        board = open_board()
        job = await board.accept(make_job())
        await board.claim(job.id)
        run_sql("DELETE FROM jobs")
        assert not await end(board, job)
        assert board.find(job.id) is None
        assert (await board.accept(make_job())).id in board.queue.order()
        await board.close()

    asyncio.run(scenario())


def test_a_row_that_may_not_be_changed_is_set_aside(open_board, run_sql):
    """A constraint, here a trigger's: this job can never be claimed, the next one can."""

    async def scenario():
        board = open_board()
        stubborn, next_one = await board.accept(make_job()), await board.accept(make_job())
        run_sql(
            "CREATE TRIGGER no BEFORE UPDATE ON jobs "
            f"WHEN old.id = '{stubborn.id}' BEGIN SELECT raise(ABORT, 'no'); END"
        )
        assert await board.claim(stubborn.id) is None
        assert board.queue.order() == [next_one.id]
        assert json.loads(board.body(stubborn.id))["error"]["code"] == "unreadable"
        assert board.expired() == []
        await board.close()

    asyncio.run(scenario())


def test_a_row_with_the_same_idempotency_key_is_the_answer(open_board, run_sql):
    """An earlier answer was lost: the row is there and memory does not know."""

    async def scenario():
        board = open_board()
        first = await board.accept(make_job("once"))
        await board.delete([first.id])
        row = make_job("once")(first.id)
        board._store.insert(row)

        def make(newest):
            return board.find_idempotent("", "once") or make_job("once")(newest)

        assert (await board.accept(make)).id == row.id
        assert board.queue.order() == [row.id]
        assert board.find_idempotent("", "once").id == row.id
        await board.close()

    asyncio.run(scenario())


def test_of_several_jobs_whose_insertion_is_in_doubt_none_comes_later(open_board, monkeypatch):
    """Red when the first alone is looked up, or forgotten: the others run, and nobody asked."""

    async def scenario():
        board = open_board()
        store = board._store
        insert = store.insert

        def several(newest):
            first = make_job()(newest)
            return [first, dataclasses.replace(make_job()(first.id), first_id=first.id)]

        def lose_answer(*jobs):
            insert(*jobs)
            raise StoreUnavailable("no answer")

        def be_away(job_id):
            raise StoreUnavailable("away")

        monkeypatch.setattr(store, "insert", lose_answer)
        taken = await board.accept_all(several)  # it is looked up
        assert board.group_of(taken[0]) == taken
        assert store.states().keys() == {job.id for job in taken}
        monkeypatch.setattr(store, "find", be_away)
        with pytest.raises(StoreUnavailable):
            await board.accept_all(several)
        assert len(store.states()) == 4
        await board.check()
        assert store.states().keys() == {job.id for job in taken}
        assert board.queue.order() == sorted(job.id for job in taken)
        await board.close()

    asyncio.run(scenario())


def test_a_locked_database_is_said_at_once_to_all_and_found_again(open_board, tmp_path):
    """Red when each waits for its own time-out behind the others."""

    async def scenario():
        board = open_board()
        waiting = await board.accept(make_job())
        other = sqlite3.connect(tmp_path / "jobs.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        calls = [board.accept(make_job()) for _ in range(20)]
        calls += [board.cancel(waiting.id), board.delete([waiting.id])]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
        assert time.monotonic() - began < 10
        assert status(board, waiting) == "queued", "reads go on"
        await board.check()
        assert "locked" in board.trouble
        other.execute("ROLLBACK")
        other.close()
        await board.check()
        assert board.trouble is None
        await board.accept(make_job())
        assert len(board.queue) == 2
        await board.close()

    asyncio.run(scenario())


def test_a_database_that_was_taken_ends_the_server(open_board, run_sql):
    async def scenario():
        board = open_board()
        job = await board.accept(make_job())
        run_sql("UPDATE service SET epoch = epoch + 1")
        assert board.lost is None
        await board.check()
        assert "another server" in board.lost
        for write in (board.accept(make_job()), board.claim(job.id), board.delete([job.id])):
            with pytest.raises(OwnershipLost):
                await write
        await board.close()

    asyncio.run(scenario())


def test_a_write_whose_asker_is_gone_is_done_whole(open_board):
    """A client that leaves, or a signal, in the middle of a claim: memory and database agree."""

    async def scenario():
        board = open_board()
        job = await board.accept(make_job())
        for _ in range(30):
            claim = asyncio.create_task(board.claim(job.id))
            await asyncio.sleep(0)
            claim.cancel()
            await asyncio.gather(claim, return_exceptions=True)
        await board.close()
        return board, board.find(job.id)

    board, after = asyncio.run(scenario())
    assert after.state == State.IN_PROGRESS
    assert after.attempts == 1
    assert board._store.load() == [after]


@pytest.mark.parametrize(("is_whole", "state"), [(True, "completed"), (False, "queued")])
def test_a_job_whose_files_had_got_their_place_is_completed(open_board, tmp_path, is_whole, state):
    """The server ended between the renaming of the files and the last write."""
    files = {"video": {"bytes": 7, "sha256": "0" * 64}}

    async def scenario():
        board = open_board()
        job = await board.accept(make_job())
        await board.claim(job.id)
        assert await board.note_made(job.id, {"files": files, "layout": "single"})
        assert status(board, job) == "in_progress"
        await board.close()
        board._store.close()
        return job

    job = asyncio.run(scenario())
    board = open_board(is_whole=lambda _: is_whole)
    after = board.find(job.id)
    assert after.state == state
    assert (after.metadata or {}).get("files") == (files if is_whole else None)
    assert board.kept_of("").file_bytes == (7 if is_whole else 0)


def test_one_bad_row_does_not_stop_the_start(open_board, run_sql):
    async def fill():
        board = open_board()
        jobs = [await board.accept(make_job()) for _ in range(3)]
        await board.claim(jobs[0].id)
        await board.close()
        board._store.close()
        return jobs

    jobs = asyncio.run(fill())
    run_sql(
        f"UPDATE jobs SET request = '{{}}' WHERE id = '{jobs[0].id}'",
        f"UPDATE jobs SET metadata = '{{\"seconds\": 5}}' WHERE id = '{jobs[1].id}'",
        f"UPDATE jobs SET attempts = 'many', created_at = 'once' WHERE id = '{jobs[2].id}'",
    )
    board = open_board()
    assert [status(board, job) for job in jobs] == ["failed", "queued", "failed"]
    assert board.queue.order() == [jobs[1].id]


def test_what_never_expires_does_not(open_board):
    async def scenario():
        board = open_board(keep_seconds=None)
        job = await board.accept(make_job())
        await board.claim(job.id)
        await board.complete(job.id, {})
        assert json.loads(board.body(job.id))["expires_at"] is None
        assert board.expired() == []
        await board.close()

    asyncio.run(scenario())


def test_finished_jobs_are_counted_for_each_owner(open_board):
    async def scenario():
        board = open_board()
        jobs = {}
        for owner in ("ada", "ada", "bob"):
            job = await board.accept(make_job(owner=owner))
            await board.claim(job.id)
            await board.complete(job.id, {"files": {"video": {"bytes": 10, "sha256": ""}}})
            jobs.setdefault(owner, []).append(job.id)
        failed = await board.accept(make_job(owner="ada"))
        await board.cancel(failed.id)
        assert dataclasses.astuple(board.kept_of("ada")) == (3, 1, 20)
        assert dataclasses.astuple(board.kept_of("bob")) == (1, 0, 10)
        assert board.oldest_failed("ada", 5) == [failed.id]
        await board.delete([*jobs["ada"], failed.id])
        assert dataclasses.astuple(board.kept_of("ada")) == (0, 0, 0)
        await board.close()

    asyncio.run(scenario())


def test_polled_objects_take_a_bounded_room():
    bodies = Bodies(max_bytes=1000)
    for number in range(100):
        bodies.put(str(number), b"x" * 100)
    kept = [number for number in range(100) if bodies.get(str(number))]
    assert kept == list(range(90, 100))
    bodies.put("90", b"y" * 500)
    assert bodies.get("91") is None
    assert bodies.get("90") == b"y" * 500
    bodies.forget("90")
    assert bodies.get("90") is None


def test_a_finished_job_costs_little_more_than_its_prompt(open_board):
    """Red when the JSON of every job stays in memory, at six bytes for each of these letters."""
    number, letters = 400, 4000

    async def scenario():
        board = open_board()
        board._bodies = Bodies(max_bytes=1 << 20)
        gc.collect()
        tracemalloc.start()
        for index in range(number):
            text = "ж" * letters + str(index)
            request = dataclasses.replace(REQUEST, prompt=text, negative_prompt=text[::-1])
            job = dataclasses.replace(make_job()(None), request=request, state=State.FAILED)
            board._add(job)
            board.body(job.id)
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return (used - (1 << 20)) / number

    texts = 2 * 2 * letters
    assert asyncio.run(scenario()) < texts + 4096
