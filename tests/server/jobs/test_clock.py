"""The time by which jobs expire."""

import pytest

from server.jobs.clock import HOLD_SECONDS, JUMP_SECONDS, ExpiryClock

DAY = 86_400.0


class Clocks:
    """A wall clock that may jump and a steady one that does not."""

    def __init__(self):
        self.wall, self.steady = 1e9, 50.0

    def pass_time(self, seconds):
        self.wall += seconds
        self.steady += seconds

    def make(self, last_seen=None):
        return ExpiryClock(last_seen=last_seen, wall=lambda: self.wall, steady=lambda: self.steady)


@pytest.fixture
def clocks():
    return Clocks()


def test_time_passes(clocks):
    clock = clocks.make()
    for seconds in (1, DAY, 3 * DAY):  # a machine that slept has a steady clock that went on
        clocks.pass_time(seconds)
        assert clock.now() == clocks.wall


def test_a_jump_ahead_expires_nothing_until_it_has_lasted(clocks):
    clock = clocks.make()
    before = clocks.wall
    clocks.wall += DAY
    assert clock.now() == before
    clocks.pass_time(HOLD_SECONDS - 1)
    assert clock.now() == before + HOLD_SECONDS - 1
    clocks.pass_time(1)
    assert clock.now() == clocks.wall


def test_a_jump_that_is_taken_back_leaves_nothing(clocks):
    clock = clocks.make()
    clocks.wall += DAY
    clock.now()
    clocks.pass_time(HOLD_SECONDS / 2)
    clocks.wall -= DAY
    assert clock.now() == clocks.wall
    clocks.wall += DAY
    clocks.pass_time(HOLD_SECONDS / 2)
    assert clock.now() == clocks.wall - DAY, "the hour begins anew"


def test_small_corrections_and_steps_back_are_followed(clocks):
    clock = clocks.make()
    for correction in (JUMP_SECONDS / 2, -10, -DAY):
        clocks.wall += correction
        assert clock.now() == clocks.wall


def test_a_start_long_after_the_last_sign_of_life_waits_too(clocks):
    """The clock may have been wrong since the machine started."""
    clock = clocks.make(last_seen=clocks.wall - DAY)
    assert clock.now() == clocks.wall - DAY
    clocks.pass_time(HOLD_SECONDS)
    assert clock.now() == clocks.wall


def test_a_start_soon_after_does_not(clocks):
    assert clocks.make(last_seen=clocks.wall - 60).now() == clocks.wall
    assert clocks.make(last_seen=clocks.wall + 60).now() == clocks.wall
