"""Which process is well and which is lost, heartbeat by heartbeat; nothing here takes time."""

import pytest

from wan_tpu.multihost.connection import Connection
from wan_tpu.multihost.health import LeaderPosition, Peer, StallDetector
from wan_tpu.multihost.lockstep import Outcome
from wan_tpu.multihost.messages import Left, Position

PATIENCE = 20.0


class NoConnection(Connection):
    def __init__(self):
        pass


@pytest.fixture
def peer():
    return Peer(process_id=1, machine="b", connection=NoConnection())


def here(barrier=5, *, job=1, stage="denoise", has_left=False):
    return LeaderPosition(job=job, barrier=barrier, stage=stage, has_left=has_left)


def problems(peer, leader, count, at=None):
    """What is found in so many heartbeats, with a message from the peer before each."""
    found = []
    for heartbeat in range(count):
        if at is not None:
            peer.silence.reset()
            peer.position = at(heartbeat) if callable(at) else at
        found.append(peer.problem(leader, PATIENCE))
    return [problem for problem in found if problem]


def left(outcome, barrier=5, job=1, reason=""):
    return Left(job=job, barrier=barrier, outcome=str(outcome), reason=reason)


def test_silence(peer):
    assert problems(peer, here(), 21) == []
    assert problems(peer, here(), 1) == ["has sent nothing for 21 s"]


def test_a_beat_ends_the_silence(peer):
    place = Position(job=1, barrier=5, stage="denoise")
    for _ in range(5):
        assert problems(peer, here(), 15) == []
        assert problems(peer, here(), 1, place) == []


def test_who_is_behind_and_stands_still_hangs(peer):
    place = Position(job=1, barrier=4, stage="denoise")
    assert problems(peer, here(), 21, place) == []
    (problem,) = problems(peer, here(), 1, place)
    assert problem == (
        "hangs: it is still at barrier 4 of job 1 (denoise), process 0 at barrier 5 of job 1"
    )


def test_who_is_behind_and_moves_is_well(peer):
    moving = lambda beat: Position(job=1, barrier=beat, stage="denoise")  # noqa: E731
    assert problems(peer, here(barrier=1000), 100, moving) == []


def test_who_is_where_process_0_is_may_stand(peer):
    assert problems(peer, here(), 100, Position(job=1, barrier=5, stage="denoise")) == []


def test_a_compiler_takes_as_long_as_it_takes(peer):
    assert problems(peer, here(), 1000, Position(job=1, barrier=4, stage="compile step")) == []
    assert problems(peer, here(), 100, Position(job=1, barrier=4, stage="compiled step"))


def test_who_does_not_leave_a_job_hangs(peer):
    place = Position(job=1, barrier=5, stage="decode")
    assert "hangs" in problems(peer, here(has_left=True), 30, place)[0]
    peer.left = left(Outcome.DONE)
    assert problems(peer, here(has_left=True), 100, place) == []


def test_before_the_first_job_nobody_hangs(peer):
    idle = LeaderPosition(job=0, barrier=0, stage="", has_left=True)
    assert problems(peer, idle, 100, Position(job=0, barrier=0, stage="")) == []


def test_who_fails_alone_is_lost_after_a_grace(peer):
    peer.left = left(Outcome.FAILED, reason="RuntimeError: chip")
    place = Position(job=1, barrier=5, stage="denoise")
    assert problems(peer, here(), 5, place) == []
    assert problems(peer, here(), 1, place) == [
        "failed where process 0 did not: RuntimeError: chip"
    ]


def test_who_fails_while_process_0_still_compiles_may_not_be_alone(peer):
    """RESOURCE_EXHAUSTED comes from each compiler in its own time."""
    peer.left = left(Outcome.FAILED)
    place = Position(job=1, barrier=5, stage="compile step")
    assert problems(peer, here(stage="compile step"), 100, place) == []
    assert problems(peer, here(stage="compiled step"), 100, place)


@pytest.mark.parametrize(
    ("mine", "theirs", "stage", "alike"),
    [
        (Outcome.DONE, Outcome.DONE, "decode", True),
        (Outcome.STOPPED, Outcome.STOPPED, "denoise", True),
        (Outcome.FAILED, Outcome.FAILED, "denoise", True),
        (Outcome.FAILED, Outcome.STOPPED, "decode", True),
        (Outcome.STOPPED, Outcome.FAILED, "denoise", True),
        (Outcome.DONE, Outcome.FAILED, "decode", False),
        (Outcome.STOPPED, Outcome.DONE, "decode", False),
        # One of them has a program now that the other will compile again.
        (Outcome.FAILED, Outcome.STOPPED, "compile step", False),
        (Outcome.FAILED, Outcome.FAILED, "compile step", True),
    ],
)
def test_how_two_may_leave_a_job(peer, mine, theirs, stage, alike):
    peer.left = left(theirs)
    assert (peer.divergence(here(stage=stage, has_left=True), mine) == "") == alike


@pytest.mark.parametrize(("barrier", "job"), [(4, 1), (5, 2)])
def test_another_place_is_out_of_step(peer, barrier, job):
    peer.left = left(Outcome.DONE, barrier=barrier, job=job)
    divergence = peer.divergence(here(has_left=True), Outcome.DONE)
    assert f"job {job} at barrier {barrier} (no error)" in divergence


def test_pace_knows_nothing_before_a_unit_has_ended():
    stall = StallDetector()
    assert not any(stall.problem(PATIENCE) for _ in range(1000))
    stall.start()
    stall.advance()  # as the stage starts
    assert not any(stall.problem(PATIENCE) for _ in range(1000))


def test_pace_allows_the_patience_or_five_of_the_longest(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("wan_tpu.multihost.health.time.monotonic", lambda: now[0])
    for unit, allowed in ((1.0, 20), (30.0, 150)):
        stall = StallDetector()
        stall.advance()
        now[0] += unit
        stall.advance()
        found = [stall.problem(PATIENCE) for _ in range(allowed + 1)]
        assert not any(found[:-1])
        assert found[-1] == f"for {allowed + 1} s, where {unit:.1f} s were the most before"
        stall.advance()
        assert not any(stall.problem(PATIENCE) for _ in range(allowed))


@pytest.mark.parametrize("first", [25.0, 120.0])
def test_a_first_step_of_25_seconds_and_slow_ones_after_it_are_no_stall(monkeypatch, first):
    """As on a slice: patience is shorter than a step, and nothing is known before the first.

    Red when the first step is judged by the patience, or a stage by the one before it.
    """
    now = [0.0]
    monkeypatch.setattr("wan_tpu.multihost.health.time.monotonic", lambda: now[0])

    def units(stall, *seconds):
        """What is found while units of a stage take so long, asked once a second."""
        found = []
        stall.start()
        stall.advance()  # as the stage starts
        for each in seconds:
            for _ in range(int(each)):
                now[0] += 1.0
                found.append(stall.problem(PATIENCE))
            stall.advance()
        return [problem for problem in found if problem]

    stall = StallDetector()
    assert units(stall, 0.5, 0.5) == []  # text: its units are short
    assert units(stall, first, 12.0, 12.0, 25.0, 100.0) == []
    assert units(stall, first, 3.0) == []  # decode begins anew: its first frame is slow, too
    (problem, *_) = units(stall, 3.0, 21.0)
    assert problem == "for 21 s, where 3.0 s were the most before"
