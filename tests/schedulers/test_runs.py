"""Whole runs of both solvers: equal to diffusers', one program for all steps, any layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
