"""Who is well and who is lost, beat by beat; nothing here takes time."""

import pytest

from wan_tpu.multihost.connection import Connection
from wan_tpu.multihost.lockstep import Outcome
from wan_tpu.multihost.roster import Here, Member, Pace
from wan_tpu.multihost.words import At, Left

PATIENCE = 20.0


class NoConnection(Connection):
    def __init__(self):
        pass


@pytest.fixture
def member():
    return Member(process_id=1, machine="b", connection=NoConnection())


def here(point=5, *, number=1, stage="denoise", has_left=False):
    return Here(number=number, point=point, stage=stage, has_left=has_left)


def beats(member, place, count, at=None):
    """What is said in so many beats, with a word from the member before each."""
    said = []
    for beat in range(count):
        if at is not None:
            member.silence.heard()
            member.at = at(beat) if callable(at) else at
        said.append(member.what_is_wrong(place, PATIENCE))
    return [words for words in said if words]


def left(outcome, point=5, number=1, reason=""):
    return Left(number=number, point=point, outcome=str(outcome), reason=reason)


def test_silence(member):
    assert beats(member, here(), 21) == []
    assert beats(member, here(), 1) == ["has not been heard of for 21 s"]


def test_a_beat_ends_the_silence(member):
    place = At(number=1, point=5, stage="denoise")
    for _ in range(5):
        assert beats(member, here(), 15) == []
        assert beats(member, here(), 1, place) == []


def test_who_is_behind_and_stands_still_hangs(member):
    place = At(number=1, point=4, stage="denoise")
    assert beats(member, here(), 21, place) == []
    (words,) = beats(member, here(), 1, place)
    assert words == (
        "hangs: it is still at point 4 of job 1 (denoise), process 0 at point 5 of job 1"
    )


def test_who_is_behind_and_moves_is_well(member):
    moving = lambda beat: At(number=1, point=beat, stage="denoise")  # noqa: E731
    assert beats(member, here(point=1000), 100, moving) == []


def test_who_is_where_process_0_is_may_stand(member):
    assert beats(member, here(), 100, At(number=1, point=5, stage="denoise")) == []


def test_a_compiler_takes_as_long_as_it_takes(member):
    assert beats(member, here(), 1000, At(number=1, point=4, stage="compile step")) == []
    assert beats(member, here(), 100, At(number=1, point=4, stage="compiled step"))


def test_who_does_not_leave_a_job_hangs(member):
    place = At(number=1, point=5, stage="decode")
    assert "hangs" in beats(member, here(has_left=True), 30, place)[0]
    member.left = left(Outcome.DONE)
    assert beats(member, here(has_left=True), 100, place) == []


def test_before_the_first_job_nobody_hangs(member):
    idle = Here(number=0, point=0, stage="", has_left=True)
    assert beats(member, idle, 100, At(number=0, point=0, stage="")) == []


def test_who_fails_alone_is_lost_after_a_grace(member):
    member.left = left(Outcome.FAILED, reason="RuntimeError: chip")
    place = At(number=1, point=5, stage="denoise")
    assert beats(member, here(), 5, place) == []
    assert beats(member, here(), 1, place) == ["failed where process 0 did not: RuntimeError: chip"]


def test_who_fails_while_process_0_still_compiles_may_not_be_alone(member):
    """RESOURCE_EXHAUSTED comes from each compiler in its own time."""
    member.left = left(Outcome.FAILED)
    place = At(number=1, point=5, stage="compile step")
    assert beats(member, here(stage="compile step"), 100, place) == []
    assert beats(member, here(stage="compiled step"), 100, place)


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
def test_how_two_may_leave_a_job(member, mine, theirs, stage, alike):
    member.left = left(theirs)
    assert (member.left_otherwise(here(stage=stage, has_left=True), mine) == "") == alike


@pytest.mark.parametrize(("point", "number"), [(4, 1), (5, 2)])
def test_another_place_is_out_of_step(member, point, number):
    member.left = left(Outcome.DONE, point=point, number=number)
    words = member.left_otherwise(here(has_left=True), Outcome.DONE)
    assert f"job {number} at point {point} (no error)" in words


def test_pace_knows_nothing_before_a_unit_has_ended():
    pace = Pace()
    assert not any(pace.what_is_wrong(PATIENCE) for _ in range(1000))
    pace.start()
    pace.point()  # as the stage starts
    assert not any(pace.what_is_wrong(PATIENCE) for _ in range(1000))


def test_pace_allows_the_patience_or_five_of_the_longest(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("wan_tpu.multihost.roster.time.monotonic", lambda: now[0])
    for unit, allowed in ((1.0, 20), (30.0, 150)):
        pace = Pace()
        pace.point()
        now[0] += unit
        pace.point()
        said = [pace.what_is_wrong(PATIENCE) for _ in range(allowed + 1)]
        assert not any(said[:-1])
        assert said[-1] == f"for {allowed + 1} s, where {unit:.1f} s were the most before"
        pace.point()
        assert not any(pace.what_is_wrong(PATIENCE) for _ in range(allowed))
