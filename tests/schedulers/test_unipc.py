"""UniPC's configuration: every solver order and corrector setting, and what is refused."""

import numpy as np
import pytest
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from tests.tolerances import PARITY
from wan_tpu.errors import CheckpointError
from wan_tpu.schedulers import make_schedule
from wan_tpu.schedulers.unipc import SOLVER_ORDERS


@pytest.mark.parametrize("disable_corrector", [[], [0], [1, 3]])
@pytest.mark.parametrize("solver_order", SOLVER_ORDERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 6, 25])
def test_orders_and_correctors_equal_diffusers(
    solver_order, disable_corrector, steps, model, noise, make_pair, run_ours, run_diffusers
):
    fields = {"solver_order": solver_order, "disable_corrector": disable_corrector}
    ours, theirs = make_pair("unipc", steps, 3.0, **fields)
    got = run_ours(ours, model, noise)[-1]
    expected = run_diffusers(theirs, model, noise)[-1]
    assert np.abs(got - expected).max() / np.ptp(expected) <= PARITY


@pytest.mark.parametrize("disabled", [True, False])
def test_the_corrector_matters(disabled, noise, run_ours):
    """The parity tests above would not see a corrector that is never asked for."""
    config = {"disable_corrector": list(range(10)) if disabled else []}
    schedule = make_schedule("unipc", num_inference_steps=10, flow_shift=3.0, config=config)
    rows = [schedule.coefficients(step).corrector for step in range(10)]
    untouched = [row.tolist() == [1, 0, 0, 0, 0] for row in rows]
    assert untouched == [True] + [disabled] * 9


def test_first_and_last_step_are_of_first_order():
    schedule = make_schedule("unipc", num_inference_steps=5, flow_shift=3.0)
    assert schedule.coefficients(0).predictor[2] == 0
    assert schedule.coefficients(1).predictor[2] != 0
    assert schedule.coefficients(4).predictor.tolist() == [0, 1, 0]  # the clean estimate itself


def test_a_saved_wan_configuration_is_accepted():
    """What diffusers writes for Wan, all fields of this version included."""
    saved = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=3
    )
    config = dict(saved.config) | {"_class_name": "UniPCMultistepScheduler"}
    schedule = make_schedule("unipc", num_inference_steps=4, flow_shift=5.0, config=config)
    assert schedule.coefficients(0).predictor.shape == (4,)
    assert make_schedule("euler", num_inference_steps=4, flow_shift=5.0, config=config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prediction_type", "epsilon"),
        ("use_flow_sigmas", False),
        ("predict_x0", False),
        ("solver_type", "bh1"),
        ("lower_order_final", False),
        ("final_sigmas_type", "sigma_min"),
        ("solver_p", {}),
        ("thresholding", True),
        ("use_dynamic_shifting", True),
        ("shift_terminal", 0.1),
        ("use_karras_sigmas", True),
        ("use_exponential_sigmas", True),
        ("use_beta_sigmas", True),
        ("solver_order", 4),
        ("solver_order", "2"),
        ("num_train_timesteps", 1),
        ("num_train_timesteps", 999.5),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(field, value):
    with pytest.raises(CheckpointError, match=rf"{field} .*{value!r}"):
        make_schedule("unipc", num_inference_steps=4, flow_shift=3.0, config={field: value})


def test_a_file_that_leaves_fields_out_means_what_diffusers_would_read():
    config = {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}
    with pytest.raises(CheckpointError, match="prediction_type is 'epsilon'"):
        make_schedule("unipc", num_inference_steps=4, flow_shift=3.0, config=config)


@pytest.mark.parametrize("fields", [{"solver_type": "bh1"}, {"lower_order_final": False}])
def test_diffusers_gives_no_numbers_for_what_we_refuse(fields, noise, make_pair, run_diffusers):
    """Why two settings are refused; when this fails, they can be implemented."""
    wan = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    scheduler = UniPCMultistepScheduler(**wan, **fields)
    scheduler.set_timesteps(6)
    final = run_diffusers(scheduler, lambda i, t, x: x, noise)[-1]
    assert not np.isfinite(final).all()
