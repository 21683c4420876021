"""What a generation measures of its stages."""

import itertools

import pytest

from wan_tpu.pipeline import progress
from wan_tpu.pipeline.progress import Watch


def test_a_stage_within_another_is_counted_once(monkeypatch):
    """Red when the compiling of a set's programs counts as its making, too."""
    clock = itertools.count()
    monkeypatch.setattr(progress.time, "perf_counter", lambda: float(next(clock)))
    watch = Watch()
    with watch.stage("adapters", 1):
        for _ in range(2):
            with watch.stage("compile merge", 1):
                pass
    with watch.stage("text", 1):
        pass
    # The clock is asked when a stage begins, reports and ends.
    assert watch.seconds == pytest.approx({"compile merge": 4, "adapters": 4, "text": 2})
