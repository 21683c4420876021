"""What several steps come to."""

import json
import math

import pytest

from wan_tpu.errors import WanTpuError
from wan_tpu.json_lines import JsonLines
from wan_tpu.training.metrics import KINDS, Meter, Outcome, bucket_of


def add(meter, sigmas, losses, *, loss=1.0, experts=(), seconds=2.0):
    meter.add(
        loss=loss, gradient_norm=3.0, seconds=seconds, tokens=100 * len(sigmas),
        flops=1e12 * len(sigmas), sigmas=sigmas, losses=losses, experts=experts,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sigma", "bucket"),
    [(0.0, "0-0.2"), (0.1999, "0-0.2"), (0.2, "0.2-0.4"), (0.999, "0.8-1"), (1.0, "0.8-1")],
)
def test_the_bucket_of_a_noise_level(sigma, bucket):
    assert bucket_of(sigma) == bucket


def test_means_are_over_samples_in_a_bucket_and_over_steps_elsewhere():
    meter = Meter(steps=9, num_samples=16, peak_flops=4e12)
    add(meter, [0.1, 0.15], [2.0, 4.0], loss=1.0, experts=["low", "low"])
    add(meter, [0.1, 0.9], [6.0, 80.0], loss=5.0, experts=["low", "high"], seconds=6.0)
    line = meter.line(step=2, learning_rate=1e-4, samples_seen=4)
    assert line.loss_by_sigma == {"0-0.2": 4.0, "0.8-1": 80.0}
    assert line.loss_by_expert == {"high": 80.0, "low": 4.0}
    assert (line.loss, line.gradient_norm, line.seconds, line.epoch) == (3.0, 3.0, 4.0, 0.25)
    assert (line.samples_per_second, line.tokens_per_second) == (0.5, 50.0)
    assert line.mfu == pytest.approx(4e12 / 8 / 4e12)


def test_a_line_begins_anew():
    meter = Meter(steps=9, num_samples=16)
    add(meter, [0.1], [2.0])
    meter.line(step=1, learning_rate=1e-4, samples_seen=1)
    add(meter, [0.9], [5.0], loss=7.0)
    line = meter.line(step=2, learning_rate=1e-4, samples_seen=2)
    assert (line.loss, line.loss_by_sigma, line.mfu) == (7.0, {"0.8-1": 5.0}, None)
    with pytest.raises(WanTpuError, match="no step before 3"):
        meter.line(step=3, learning_rate=1e-4, samples_seen=2)


def test_what_is_no_number_is_null_in_json():
    meter = Meter(steps=9, num_samples=16)
    add(meter, [0.1, 0.9], [math.nan, 1.0], loss=math.inf)
    line = meter.line(step=1, learning_rate=1e-4, samples_seen=2)
    data = JsonLines(*KINDS).encode(line)
    read = json.loads(data, parse_constant=pytest.fail)
    assert (read["loss"], read["loss_by_sigma"]) == (None, {"0-0.2": None, "0.8-1": 1.0})
    assert JsonLines(*KINDS).decode(data) == line


def test_experts_are_named_for_every_sample_or_for_none():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        add(Meter(steps=1, num_samples=1), [0.1, 0.2], [1.0, 1.0], experts=["low"])


def test_a_run_is_finished_when_no_step_is_left():
    assert Outcome(step=3, steps=3, result=None).is_finished
    assert not Outcome(step=2, steps=3, result=None).is_finished
