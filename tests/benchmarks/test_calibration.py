"""The calibration table's arithmetic."""

import pytest

from benchmarks.calibration import RUNS, Prediction, format_table, rank_correlation


def test_measured_step_seconds():
    splash = next(r for r in RUNS if r.seconds == 418)
    assert splash.measured_step_seconds == 7.80
    flash = next(r for r in RUNS if r.seconds == 528)
    assert flash.measured_step_seconds == pytest.approx(10.0)
    assert all(r.measured_step_seconds is None for r in RUNS if r.seconds is None)


@pytest.mark.parametrize(
    ("second", "expected"), [([1, 2, 3, 9], 1), ([9, 3, 2, 1], -1), ([1, 1, 2, 2], 0.894)]
)
def test_rank_correlation(second, expected):
    assert rank_correlation([1, 2, 3, 4], second) == pytest.approx(expected, abs=1e-3)


def test_every_published_run_has_a_row():
    predictions = [
        Prediction(step_range=(r.measured_step_seconds or 5.0, 6.0), fits=True, peak_gib=20.0)
        for r in RUNS
    ]
    table = format_table(RUNS, predictions).splitlines()
    assert sum(line.startswith("| ") for line in table) == len(RUNS) + 1
    assert table[-1].endswith(": 1.00")
    assert sum("+0%" in line for line in table) == sum(r.seconds is not None for r in RUNS)
