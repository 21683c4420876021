"""Every layout gives the video of one device with the reference attention, within rounding."""

import pytest

from tests.consistency.cases import (
    Case,
    all_cases,
    all_layouts,
    covering_cases,
)
from wan_tpu.pipeline.consistency import compare


@pytest.mark.parametrize("case", covering_cases(), ids=str)
def test_every_pair_of_choices(case: Case, compared_runs):
    assert_consistent(case, compared_runs)


@pytest.mark.slow
@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_everything(case: Case, compared_runs):
    """All 2,736 cases."""
    assert_consistent(case, compared_runs)


def assert_consistent(case: Case, compared_runs) -> None:
    comparison = compare(*compared_runs(case))
    assert comparison.consistent, comparison


def test_the_cover_is_one():
    """Red when a pair of choices is left out, or when the choice is another one each time."""
    chosen = covering_cases()
    covered = set().union(*(case.pairs() for case in chosen))
    assert covered == set().union(*(case.pairs() for case in all_cases()))
    assert chosen == covering_cases()
    assert len(chosen) <= 24


def test_all_cases_are_all():
    """20 shapes: 10 with sp in three modes, and those with dp or sp with weights both ways."""
    layouts = all_layouts()
    assert len({layout.shape for layout in layouts}) == 20
    assert len(layouts) == len(set(layouts)) == 76
    assert len(list(all_cases())) == 76 * 3 * 3 * 2 * 2
