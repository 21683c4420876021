"""The arithmetic of a growing fleet, on jobs whose times are known."""

import dataclasses

import pytest

from benchmarks.fleet import scaling
from benchmarks.fleet.running import Made, difference, per, total

ENGINE = 2.0


def made(slice, started, *, late=0.25):
    handed_in = started + ENGINE + late
    return Made(
        slice=slice,
        started=started,
        handed_in=handed_in,
        recorded=handed_in + 0.125,
        engine_seconds=ENGINE,
    )


def row(jobs, slices, *, counts=None):
    return scaling.summed_up(slices, jobs, counts or {}, {"APIs": 1.0}, idle={}, busy=0.5)


ALONE = [made("a", 10.0), made("a", 12.5), made("a", 15.0), made("a", 17.5)]
TOGETHER = [made("a", 10.0), made("b", 10.0), made("a", 12.75), made("b", 12.75)]


def test_a_row_says_where_a_slice_spends_its_time():
    alone = row(ALONE, 1, counts={"temporal X": 8.0})
    assert alone.wall_seconds == 17.5 + ENGINE + 0.25 + 0.125 - 10.0
    assert alone.overhead_seconds == pytest.approx(alone.wall_seconds / 4 - ENGINE)
    assert (alone.inside_seconds, alone.between_seconds) == (0.25, 0.25)
    assert (alone.counts, alone.cpu_seconds) == ({"temporal X": 2.0}, {"APIs": 0.25})


def test_a_slice_waits_between_its_own_jobs_alone():
    assert sorted(scaling.gaps(TOGETHER)) == [0.5, 0.5]
    assert scaling.gaps(TOGETHER[:2]) == []


def test_twice_the_slices_that_make_twice_as_many_a_second_are_linear():
    alone = row(ALONE, 1)
    assert alone.share_of_linear(alone) == 1
    twice = dataclasses.replace(alone, slices=2, jobs=8)
    assert twice.share_of_linear(alone) == 1
    assert twice.overhead_seconds == pytest.approx(alone.overhead_seconds)
    assert row(TOGETHER, 2).share_of_linear(alone) == pytest.approx(9.875 / 5.125 / 2)


def test_what_is_counted_while_nobody_works_is_no_jobs():
    counted = difference({"s3 LIST": 5.0, "s3 PUT": 1.0}, {"s3 LIST": 25.0, "s3 PUT": 1.0})
    assert counted == {"s3 LIST": 20.0}
    assert scaling.net(counted, {"s3 LIST": 2.0}, 4.0) == {"s3 LIST": 12.0}
    assert per({"s3 LIST": 12.0}, 4) == {"s3 LIST": 3.0}
    assert total({"s3 LIST": 3.0, "s3 PUT": 1.0, "s33 PUT": 9.0}, "s3") == 4.0


def test_the_table_has_a_line_for_each_number_of_slices():
    first, second = row(ALONE, 1), row(TOGETHER, 2, counts={"temporal Look": 8.0})
    lines = scaling.report([first, second], 10)
    assert lines[0] == "scaling: jobs of 10 steps of 0.2 s"
    assert lines[2].split()[:5] == ["1", "4", "9.88", "0.405", "100.0%"]
    assert lines[3].split()[:5] == ["2", "4", "5.12", "0.780", "96.3%"]
    assert "    temporal Look: 2.00" in lines
