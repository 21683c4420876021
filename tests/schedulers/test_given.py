"""Schedules over noise levels that are given: float timesteps, Euler, re-noising."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)

from tests.tolerances import PARITY
from wan_tpu.errors import CheckpointError, InputError, UnknownNameError
from wan_tpu.request import SIGMA_SCHEDULERS
from wan_tpu.schedulers import make_given_schedule

DISTILLED = (1, 0.9375, 5 / 6, 0.625)
FASTWAN = (1, 0.757, 0.522)


@pytest.mark.parametrize("sigmas", [DISTILLED, FASTWAN, (0.9877, 0.3), (1,)])
@pytest.mark.parametrize("name", SIGMA_SCHEDULERS)
def test_levels_equal_diffusers_exactly_and_nothing_shifts_them(name, sigmas):
    """Red with a shift of the model's file, or with timesteps cut to whole numbers."""
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 8.0}
    ours = make_given_schedule(name, sigmas, config=config)
    theirs = FlowMatchEulerDiscreteScheduler(shift=1.0)
    theirs.set_timesteps(sigmas=list(sigmas))
    assert ours.timesteps.dtype == np.float32
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert ours.sigmas.tolist() == theirs.sigmas.tolist()
    expected = [np.float32(sigma) * np.float32(1000) for sigma in sigmas]
    assert ours.timesteps.tolist() == expected


def test_a_third_of_a_timestep_stays():
    timesteps = make_given_schedule("euler", DISTILLED).timesteps
    assert timesteps.tolist() == [1000, 937.5, np.float32(2500 / 3), 625]
    few = make_given_schedule("euler", DISTILLED, config={"num_train_timesteps": 500})
    assert few.timesteps.tolist() == [500, 468.75, np.float32(1250 / 3), 312.5]


def test_euler_is_diffusers_step_at_every_level(model, noise, run_ours, run_diffusers):
    theirs = FlowMatchEulerDiscreteScheduler(shift=1.0)
    theirs.set_timesteps(sigmas=list(DISTILLED))
    got = run_ours(make_given_schedule("euler", DISTILLED), model, noise)
    for ours, expected in zip(got, run_diffusers(theirs, model, noise), strict=True):
        assert np.abs(ours - expected).max() / np.ptp(expected) <= PARITY


def renoised(schedule, model, start, noises):
    """The latents after each step of a schedule that renoises."""
    update = jax.jit(schedule.update)
    state, trajectory = schedule.init_state(jnp.asarray(start)), []
    for step, timestep in enumerate(schedule.timesteps):
        velocity = jnp.asarray(model(step, float(timestep), np.asarray(state.sample)))
        state = update(state, velocity, schedule.coefficients(step), jnp.asarray(noises[step]))
        trajectory.append(np.asarray(state.sample))
    return trajectory


def test_renoising_a_linear_model_is_the_formula_exactly():
    """Every number is a multiple of 1/64 below 16, so that nothing is rounded anywhere."""
    numbers = np.random.default_rng(0)
    start, *noises = (numbers.integers(-8, 8, (2, 3, 5)).astype(np.float32) / 4 for _ in range(4))
    schedule = make_given_schedule("renoise", (1, 0.75, 0.5))
    got = renoised(schedule, lambda step, timestep, x: x / 2 - 1, start, noises)
    latents = start.astype(np.float64)
    for step, (sigma, following) in enumerate(((1, 0.75), (0.75, 0.5), (0.5, 0))):
        video = latents - sigma * (latents / 2 - 1)
        latents = (1 - following) * video + following * noises[step]
        np.testing.assert_array_equal(got[step], latents)


def test_renoising_is_diffusers_stochastic_sampling(model, noise):
    """The same formula elsewhere; its noise is torch's, in the order of the steps."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=1.0, stochastic_sampling=True)
    theirs.set_timesteps(sigmas=list(FASTWAN))
    theirs.set_begin_index(0)
    torch.manual_seed(5)
    noises = [torch.randn(noise.shape).numpy() for _ in FASTWAN]
    torch.manual_seed(5)
    got = renoised(make_given_schedule("renoise", FASTWAN), model, noise, noises)
    sample = torch.from_numpy(noise)
    for step, timestep in enumerate(theirs.timesteps):
        velocity = torch.from_numpy(model(step, float(timestep), sample.numpy()))
        sample = theirs.step(velocity, timestep, sample, return_dict=False)[0]
        error = np.abs(got[step] - sample.numpy()).max() / np.ptp(sample.numpy())
        assert error <= PARITY, f"step {step}: {error:.2e}"


def test_a_model_that_knows_the_video_gives_it_whatever_the_noise(noise):
    video = np.random.default_rng(1).standard_normal(noise.shape, np.float32)
    schedule = make_given_schedule("renoise", (0.9877, 0.6, 0.3))
    noises = np.random.default_rng(2).standard_normal((3, *noise.shape), np.float32)

    def model(step, timestep, latents):
        return (latents - video) / schedule.sigmas[step].astype(np.float32)

    assert np.abs(renoised(schedule, model, noise, noises)[-1] - video).max() <= PARITY


def test_renoising_begins_with_the_first_levels_share_of_the_noise(noise):
    """Euler with diffusers' own beginning, the noise as it is."""
    begun = make_given_schedule("renoise", (0.5, 0.25)).first_latents(noise)
    np.testing.assert_array_equal(begun, noise / 2)
    begun = make_given_schedule("euler", (0.5, 0.25)).first_latents(noise)
    np.testing.assert_array_equal(begun, noise)


@pytest.mark.parametrize("name", SIGMA_SCHEDULERS)
def test_one_program_serves_all_steps_and_the_last_ones_alone(name):
    schedule = make_given_schedule(name, DISTILLED)
    traces = []

    @jax.jit
    def update(*arguments):
        traces.append(None)
        return schedule.update(*arguments)

    ones = jnp.ones((2, 3))
    state = schedule.init_state(ones)
    for step in range(schedule.num_steps):
        state = update(state, ones, schedule.coefficients(step), ones)
    assert len(traces) == 1
    last = make_given_schedule(name, DISTILLED, num_last_steps=2)
    assert last.timesteps.tolist() == schedule.timesteps[2:].tolist()
    assert last.sigmas.tolist() == schedule.sigmas[2:].tolist()
    assert last.coefficients(0) == schedule.coefficients(2)


@pytest.mark.parametrize("name", SIGMA_SCHEDULERS)
def test_what_cannot_be_is_refused(name):
    with pytest.raises(InputError, match="too many for these sigmas: neighbouring noise levels"):
        make_given_schedule(name, (1, 0.5, 0.5 - 1e-12))
    with pytest.raises(CheckpointError, match="prediction_type is 'epsilon'"):
        make_given_schedule(name, DISTILLED, config={"prediction_type": "epsilon"})
    with pytest.raises(UnknownNameError, match="'unipc'; known: euler, renoise"):
        make_given_schedule("unipc", DISTILLED)
