"""The table of legal moves, and ids."""

import dataclasses
import itertools
import time

import pytest

from server.engine.failure import Failure
from server.jobs.job import MOVES, IllegalMove, Job, State, make_id
from wan_tpu.request import VideoRequest

JOB = Job(
    id=make_id(),
    owner="",
    model="wan-tiny",
    request=VideoRequest(prompt="a red circle", seed=1),
    created_at=time.time(),
)

GO = {
    State.QUEUED: lambda job: job.requeued(counts=True),
    State.IN_PROGRESS: lambda job: job.started(),
    State.COMPLETED: lambda job: job.completed({}, keep_seconds=10),
    State.FAILED: lambda job: job.failed(Failure.TIMEOUT, "too slow", keep_seconds=10),
}

LEGAL = {
    (State.QUEUED, State.IN_PROGRESS),
    (State.QUEUED, State.FAILED),
    (State.IN_PROGRESS, State.QUEUED),
    (State.IN_PROGRESS, State.COMPLETED),
    (State.IN_PROGRESS, State.FAILED),
}


@pytest.mark.parametrize(("before", "after"), list(itertools.product(State, State)))
def test_moves(before, after):
    job = dataclasses.replace(JOB, state=before)
    if (before, after) in LEGAL:
        assert GO[after](job).state == after
    else:
        with pytest.raises(IllegalMove, match=f"is {before} and cannot become {after}"):
            GO[after](job)


def test_a_finished_job_is_one_that_cannot_move():
    finished = {state for state in State if dataclasses.replace(JOB, state=state).is_finished}
    assert finished == {State.COMPLETED, State.FAILED}
    assert MOVES.keys() == set(State)


def test_finishing_says_when_it_expires():
    done = JOB.started().completed({"layout": "single"}, keep_seconds=60)
    assert done.expires_at == pytest.approx(done.finished_at + 60)
    assert done.metadata == {"layout": "single"}


def test_attempts_count_starts_and_spare_those_that_ended_in_good_order():
    once = JOB.started()
    assert once.attempts == 1
    assert once.requeued(counts=True).attempts == 1
    assert once.requeued(counts=False).attempts == 0


def test_ids_sort_by_time_even_when_the_clock_goes_back():
    ids = [make_id()]
    for _ in range(1000):
        ids.append(make_id(ids[-1]))
    assert ids == sorted(set(ids))
    future = "video_" + "f" * 10 + "0" * 22
    assert make_id(future) > future
