"""The loop over a table of calls, and the tables."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.checkpoint_factory import PROMPT
from wan_tpu.checkpoints.models import open_model
from wan_tpu.errors import BadNumbersError, Cancelled
from wan_tpu.pipeline import run as planning
from wan_tpu.pipeline.denoise import StepCall, denoise, pack_numbers, unpack_numbers
from wan_tpu.pipeline.progress import Watch
from wan_tpu.pipeline.step_plan import PlannedStep, plan_steps
from wan_tpu.pipeline.video_pipeline import VideoPipeline
from wan_tpu.request import SCHEDULERS, VideoRequest
from wan_tpu.schedulers.api import make_schedule
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.transformer.patches import unpatchify


@pytest.fixture(scope="module")
def one_device(devices):
    return make_mesh(parse_layout("single"), devices[:1])


def call_of(program, number, params=()):
    return StepCall(
        program=program, params=dict(params), context=None, numbers=np.float32([number])
    )


def run(calls, mesh, **watch: Any):
    return denoise(calls, jnp.zeros(2), mesh=mesh, watch=Watch(**watch))


def test_each_step_takes_the_program_parameters_and_numbers_of_its_call(one_device):
    seen = []

    def adds(params, context, state, numbers, condition, noise):
        seen.append(("adds", params["by"], float(numbers[0])))
        return state + params["by"], jnp.asarray(True)

    def doubles(params, context, state, numbers, condition, noise):
        seen.append(("doubles", params["by"], float(numbers[0])))
        return state * 2, jnp.asarray(True)

    calls = [
        call_of(adds, 0.5, {"by": 1}),
        call_of(doubles, 0.25, {"by": 0}),
        call_of(adds, 0.125, {"by": 5}),
    ]
    np.testing.assert_array_equal(run(calls, one_device), [7, 7])
    assert seen == [("adds", 1, 0.5), ("doubles", 0, 0.25), ("adds", 5, 0.125)]


def test_a_later_step_is_named_and_ends_the_loop(one_device):
    """Numbers that go bad in the third of six steps: the fourth was begun by then, no other."""
    steps = []

    def program(params, context, state, numbers, condition, noise):
        steps.append(float(numbers[0]))
        return state, jnp.asarray(len(steps) < 3)

    with pytest.raises(BadNumbersError, match="denoise, step 3 of 6"):
        run([call_of(program, index) for index in range(6)], one_device)
    assert steps == [0, 1, 2, 3]


def test_the_next_step_is_dispatched_before_the_last_is_waited_for(one_device):
    events = []

    class Answer:
        """Whether a step's numbers are finite; asking for it waits for the step."""

        def __init__(self, step):
            self.step = step

        def __array__(self, dtype=None, copy=None):
            events.append(f"waited for {self.step}")
            return np.asarray(True)

    def program(params, context, state, numbers, condition, noise):
        step = int(numbers[0])
        events.append(f"began {step}")
        return state, Answer(step)

    reported = []
    run(
        [call_of(program, index) for index in (1, 2, 3)],
        one_device,
        on_progress=lambda progress: reported.append((progress.done, len(events))),
    )
    assert events == [
        "began 1", "began 2", "waited for 1", "began 3", "waited for 2", "waited for 3",
    ]  # fmt: skip
    assert reported == [(0, 0), (1, 3), (2, 5), (3, 6)], "a step is reported once it has ended"


def test_a_stop_comes_through_within_two_steps(one_device):
    begun = []

    def program(params, context, state, numbers, condition, noise):
        begun.append(numbers)
        return state, jnp.asarray(True)

    with pytest.raises(Cancelled):
        run(
            [call_of(program, index) for index in range(9)],
            one_device,
            should_cancel=lambda: len(begun) >= 4,
        )
    assert len(begun) == 4


@pytest.mark.parametrize("name", SCHEDULERS)
def test_numbers_come_out_of_the_array_as_they_went_in(name):
    schedule = make_schedule(name, num_inference_steps=7, flow_shift=3.0)
    for step in range(7):
        packed = jnp.asarray(pack_numbers(schedule, step, 4.5))
        timestep, guidance, coefficients = unpack_numbers(schedule, packed)
        assert (timestep, guidance) == (schedule.timesteps[step], 4.5)
        expected = schedule.coefficients(step)
        assert jax.tree.structure(coefficients) == jax.tree.structure(expected)
        jax.tree.map(np.testing.assert_array_equal, coefficients, expected)


def test_a_request_without_guidance_plans_a_batch_of_one():
    defaults = open_model("wan-tiny").defaults
    schedule = make_schedule("unipc", num_inference_steps=3, flow_shift=3.0)
    for scale, batch in ((5.0, 2), (1.0, 1), (0.0, 1)):
        request = VideoRequest(prompt=PROMPT, guidance_scale=scale).resolved(defaults)
        steps = plan_steps(request, schedule)
        assert [(step.batch, step.guidance_scale) for step in steps] == [(batch, scale)] * 3


def test_a_table_of_experts_and_guidance_runs_as_it_is_written(monkeypatch, devices):
    """Two sets of parameters that take turns, and guidance that stops half-way, on dp2.

    The second set is the first with its output projection at zero: where it runs, the velocity is
    zero and the latents move no more.
    """
    pipeline = VideoPipeline.from_pretrained(
        "wan-tiny", layout=parse_layout("dp2"), devices=devices[:2]
    )
    request = VideoRequest(
        prompt=PROMPT, num_inference_steps=4, scheduler="euler", guidance_scale=5.0
    )
    plain = pipeline.intermediate(request)["latents"]

    params = dict(pipeline._executor.weights.base["transformer"])
    still = {
        name: jnp.zeros_like(value) if name.startswith("proj_out") else value
        for name, value in params.items()
    }
    pipeline.set_weights({**pipeline._executor.weights.base, "still": still})

    def run_table(*steps: PlannedStep) -> np.ndarray:
        monkeypatch.setattr(planning, "plan_steps", lambda *_, **__: steps)
        return pipeline.intermediate(request)["latents"]

    guided = PlannedStep(guidance_scale=5.0)
    unguided = PlannedStep(guidance_scale=1.0)
    expert = PlannedStep(component="still", guidance_scale=5.0)
    np.testing.assert_array_equal(run_table(guided, guided, guided, guided), plain)

    # The expert predicts nothing: with Euler, steps of it leave the latents as they are.
    planned = pipeline._plan(request, Watch())
    start = unpatchify(pipeline._executor.start(planned, None), planned.geometry)
    np.testing.assert_array_equal(run_table(*[expert] * 4), start)
    resting = run_table(guided, guided, expert, expert)
    assert np.abs(resting - start).max() > 0.01
    assert np.abs(resting - plain).max() > 0.01

    # Guidance for a part of the steps lies between guidance for all and for none.
    mixed = run_table(guided, guided, unguided, unguided)
    alone = run_table(unguided, unguided, unguided, unguided)
    assert 0 < np.abs(mixed - plain).max() < np.abs(alone - plain).max()
