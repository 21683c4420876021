"""Whole runs of both solvers: equal to diffusers', one program for all steps, any layout."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.tolerances import PARITY
from wan_tpu.request import SCHEDULERS
from wan_tpu.schedulers import make_schedule


@pytest.mark.parametrize("flow_shift", [1.0, 3.0, 5.0, 12.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 8, 15, 20, 37, 50])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_step_equals_diffusers(
    name, steps, flow_shift, model, noise, make_pair, run_ours, run_diffusers
):
    ours, theirs = make_pair(name, steps, flow_shift)
    trajectories = run_ours(ours, model, noise), run_diffusers(theirs, model, noise)
    assert len(trajectories[0]) == len(trajectories[1]) == steps
    for step, (got, expected) in enumerate(zip(*trajectories, strict=True)):
        error = np.abs(got - expected).max() / np.ptp(expected)  # measured: up to 1e-6
        assert error <= PARITY, f"step {step}: {error:.2e}"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_constant_velocity_leads_to_the_video(name, noise, run_ours):
    """A model that knows the video: `latents = (1 - sigma) video + sigma noise` is a line."""
    video = np.random.default_rng(1).standard_normal(noise.shape, np.float32)
    schedule = make_schedule(name, num_inference_steps=9, flow_shift=3.0)
    trajectory = run_ours(schedule, lambda *_: noise - video, noise)
    for latents, sigma in zip(trajectory, schedule.sigmas[1:], strict=True):
        np.testing.assert_allclose(latents, (1 - sigma) * video + sigma * noise, atol=5e-6)


@pytest.mark.parametrize(("name", "least_gain"), [("euler", 1.8), ("unipc", 4.0)])
def test_error_falls_with_the_solvers_order(name, least_gain, noise, run_ours):
    """For videos drawn from a normal distribution the flow is known: noise * deviation at the end.

    Halving the steps' length must halve Euler's error and quarter that of an order-2 solver.
    """
    deviation = 0.5

    def model(step, timestep, latents):
        sigma = timestep / 1000
        variance = (1 - sigma) ** 2 * deviation**2 + sigma**2
        return (latents * (sigma - (1 - sigma) * deviation**2) / variance).astype(np.float32)

    def error(steps):
        schedule = make_schedule(name, num_inference_steps=steps, flow_shift=3.0)
        exact_times = schedule.sigmas[:-1] * 1000  # the truncated timesteps would add an error
        final = run_ours(schedule, lambda i, t, x: model(i, exact_times[i], x), noise)[-1]
        return np.abs(final - deviation * noise).max()

    assert error(20) / error(40) > least_gain


@pytest.mark.parametrize("name", SCHEDULERS)
def test_one_program_serves_all_steps(name):
    schedule = make_schedule(name, num_inference_steps=8, flow_shift=5.0)
    traces = []

    @jax.jit
    def update(*arguments):
        traces.append(None)
        return schedule.update(*arguments)

    state = schedule.init_state(jnp.ones((2, 3)))
    abstract_state = jax.eval_shape(schedule.init_state, jax.ShapeDtypeStruct((2, 3), jnp.float32))
    for step in range(schedule.num_steps):
        state = update(state, jnp.ones((2, 3)), schedule.coefficients(step))
        assert jax.eval_shape(lambda tree: tree, state) == abstract_state
    assert len(traces) == 1
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(schedule.coefficients(0)))


@pytest.mark.parametrize("name", SCHEDULERS)
def test_state_stays_float32_under_a_bfloat16_model(name):
    schedule = make_schedule(name, num_inference_steps=4, flow_shift=3.0)
    state = schedule.init_state(jnp.ones((3, 5), jnp.bfloat16))
    with jax.numpy_dtype_promotion("strict"):  # every conversion is written out
        state = schedule.update(state, jnp.ones((3, 5), jnp.bfloat16), schedule.coefficients(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_first_state_shares_no_memory(name):
    """It is donated; giving one buffer away twice crashes the process."""
    schedule = make_schedule(name, num_inference_steps=4, flow_shift=3.0)
    leaves = jax.tree.leaves(schedule.init_state(jnp.ones((3, 5))))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_sharded_and_donated_tokens_equal_the_grid(name, devices, run_ours):
    """Latents as tokens over eight devices, the state donated: the same numbers."""
    schedule = make_schedule(name, num_inference_steps=6, flow_shift=3.0)
    noise = np.random.default_rng(3).standard_normal((2, 16, 64), np.float32)
    mesh = Mesh(np.asarray(devices).reshape(2, 4), ("dp", "sp"))
    sharding = NamedSharding(mesh, PartitionSpec("dp", "sp"))
    update = jax.jit(schedule.update, donate_argnums=0)
    state = schedule.init_state(jax.device_put(noise, sharding))
    for step in range(schedule.num_steps):
        state = update(state, state.sample * 0.5, schedule.coefficients(step))
    assert state.sample.sharding.is_equivalent_to(sharding, noise.ndim)
    grid = noise.reshape(2, 4, 4, 64)
    expected = run_ours(schedule, lambda i, t, x: x * np.float32(0.5), grid)[-1]
    np.testing.assert_allclose(np.asarray(state.sample), expected.reshape(noise.shape), atol=1e-6)


@pytest.mark.parametrize("flow_shift", [1.0, 5.0])
@pytest.mark.parametrize(("steps", "last"), [(5, 1), (5, 2), (8, 7), (20, 16), (6, 6)])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_late_start_equals_diffusers(
    name, steps, last, flow_shift, model, noise, make_pair, run_ours
):
    """The last steps from a noised video, as `WanVideoToVideoPipeline` takes them."""
    ours, theirs = make_pair(name, steps, flow_shift)
    ours = ours.last(last)
    video = np.random.default_rng(5).standard_normal(noise.shape, np.float32)
    timesteps = theirs.timesteps[-last:]
    add = theirs.add_noise if name == "unipc" else theirs.scale_noise
    order = (torch.from_numpy(video), torch.from_numpy(noise), timesteps[:1])
    order = order if name == "unipc" else (order[0], order[2], order[1])
    sample = add(*order)
    np.testing.assert_array_equal(ours.add_noise(video, noise), sample.numpy())

    np.testing.assert_array_equal(ours.timesteps, timesteps.numpy())
    got = run_ours(ours, model, sample.numpy())
    for step, timestep in enumerate(timesteps):
        velocity = torch.from_numpy(model(step, float(timestep), sample.numpy()))
        sample = theirs.step(velocity, timestep, sample, return_dict=False)[0]
        error = np.abs(got[step] - sample.numpy()).max() / np.ptp(sample.numpy())
        assert error <= PARITY, f"step {step}: {error:.2e}"


def test_a_late_start_leaves_the_same_steps_uncorrected():
    config = {"disable_corrector": [1, 5, 6]}
    whole = make_schedule("unipc", num_inference_steps=9, flow_shift=3.0, config=config)
    late: Any = make_schedule(
        "unipc", num_inference_steps=9, flow_shift=3.0, config=config, num_last_steps=4
    )
    assert late.disable_corrector == (0, 1)
    for step in (2, 3):  # away from the start they are the same steps
        np.testing.assert_array_equal(
            late.coefficients(step).corrector, whole.coefficients(step + 5).corrector
        )
