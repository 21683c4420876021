"""Timesteps and noise levels: bit for bit diffusers'; and what `make_schedule` refuses."""

import numpy as np
import pytest

from wan_tpu.errors import CheckpointError, InputError, UnknownNameError
from wan_tpu.request import SCHEDULERS
from wan_tpu.schedulers import make_schedule


@pytest.mark.parametrize("num_train_timesteps", [1000, 777])
@pytest.mark.parametrize("flow_shift", [0.7, 1, 2.3, 3.0, 5.0, 8.0, 12.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_levels_equal_diffusers_exactly(name, flow_shift, num_train_timesteps, make_pair):
    for steps in (*range(1, 61), 100, 500):
        ours, theirs = make_pair(name, steps, flow_shift, num_train_timesteps=num_train_timesteps)
        assert ours.timesteps.dtype == np.float32
        assert ours.timesteps.tolist() == theirs.timesteps.tolist(), steps
        assert ours.sigmas.tolist() == theirs.sigmas.tolist(), steps


def test_values_at_wans_settings():
    """Five steps at 480p's shift, written out: a reader's example and a guard on both sides."""
    unipc = make_schedule("unipc", num_inference_steps=5, flow_shift=3.0)
    assert unipc.timesteps.tolist() == [999, 923, 818, 667, 429]
    assert unipc.sigmas[0] == pytest.approx(1 - 1e-6, abs=1e-7)
    assert unipc.sigmas[-1] == 0
    euler = make_schedule("euler", num_inference_steps=5, flow_shift=3.0)
    assert euler.timesteps[0] == 1000
    assert euler.num_steps == 5


def test_schedules_cannot_be_changed():
    schedule = make_schedule("unipc", num_inference_steps=5, flow_shift=3.0)
    with pytest.raises(ValueError, match="read-only"):
        schedule.sigmas[0] = 0.5


def test_unknown_name_lists_those_known():
    with pytest.raises(UnknownNameError, match="'dpm'; known: unipc, euler"):
        make_schedule("dpm", num_inference_steps=4, flow_shift=3.0)


@pytest.mark.parametrize(
    ("steps", "flow_shift", "message"),
    [
        (0, 3.0, "num_inference_steps must be at least 1, got 0"),
        (4, 0.0, "flow_shift must be a positive number, got 0"),
        (4, float("nan"), "flow_shift must be a positive number, got nan"),
        (4, float("inf"), "flow_shift must be a positive number, got inf"),
        (1000, 1e6, "1000 inference steps are too many for this flow shift"),
    ],
)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_numbers_out_of_range_are_refused(name, steps, flow_shift, message):
    with pytest.raises(InputError, match=message):
        make_schedule(name, num_inference_steps=steps, flow_shift=flow_shift)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prediction_type", "epsilon"),
        ("use_dynamic_shifting", True),
        ("shift_terminal", 0.1),
        ("use_karras_sigmas", True),
        ("use_exponential_sigmas", True),
        ("use_beta_sigmas", True),
        ("invert_sigmas", True),
        ("stochastic_sampling", True),
        ("num_train_timesteps", None),
    ],
)
def test_euler_refuses_what_it_does_not_do(field, value):
    with pytest.raises(CheckpointError, match=rf"{field} .*{value!r}"):
        make_schedule("euler", num_inference_steps=4, flow_shift=3.0, config={field: value})
