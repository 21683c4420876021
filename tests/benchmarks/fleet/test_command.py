"""`python -m benchmarks fleet` on a real fleet, small: it measures what it says."""

import importlib.util
import json

import pytest

from benchmarks.__main__ import main


def test_it_says_that_it_needs_a_checkout(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["fleet"]) == 2
    assert "this needs a checkout, and to be run in its folder" in capsys.readouterr().err


@pytest.mark.slow
def test_every_part_measures(tmp_path):
    path = tmp_path / "out.json"
    small = ["--slices", "1", "2", "--jobs", "2", "--steps", "3", "--repeats", "1"]
    polls = ["--polls", "0", "40", "--queued", "10", "--seconds", "3"]
    assert main(["fleet", *small, *polls, "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    for row, slices in zip(figures["scaling"], (1, 2), strict=True):
        assert (row["slices"], row["jobs"]) == (slices, 2 * slices)
        assert row["wall_seconds"] / 2 > row["engine_seconds"] > 0.5
        # Written down in progress and completed, beside the acceptance and the start.
        assert row["counts"]["postgres inserts"] == pytest.approx(1, abs=0.6)
        assert row["counts"]["temporal SignalWorkflowExecution"] == 1
        assert row["counts"]["persistence UpdateWorkflowExecution"] > 4
    assert {way: len(seconds) for way, seconds in figures["handover"].items()} == {
        "SIGTERM": 1,
        "kill -9": 1,
    }
    for turn, (hertz, is_null) in zip(
        figures["polls"], ((0, False), (40, False), (40, True)), strict=True
    ):
        assert (turn["hertz"], turn["is_null"], turn["errors"]) == (hertz, is_null, [])
        assert bool(turn["from_due"]) == bool(hertz)
        assert turn["counts"]["temporal DescribeWorkflowExecution"] > 1
    assert figures["stores"]["heartbeats a second"] > 1
