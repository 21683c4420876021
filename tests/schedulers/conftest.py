"""Whole denoising runs, with our schedules and with diffusers' schedulers."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

from wan_tpu.schedulers import Schedule, make_schedule

SHAPE = (1, 4, 3, 8, 8)

Model = Callable[[int, float, np.ndarray], np.ndarray]
"""(step, timestep, latents) -> velocity."""


def independent_model(step: int, timestep: float, latents: np.ndarray) -> np.ndarray:
    """Noise of its own at each step: the hardest case for the history's weights."""
    return np.random.default_rng(step).standard_normal(latents.shape, np.float32)


def smooth_model(step: int, timestep: float, latents: np.ndarray) -> np.ndarray:
    """Depends smoothly on latents and timestep, as a network does."""
    neighbours = np.roll(latents, 1, -1)
    velocity = np.tanh(latents * 1.3 + 0.3) * (0.5 + timestep / 1000) - 0.2 * neighbours
    return velocity.astype(np.float32)


@pytest.fixture(params=[independent_model, smooth_model], ids=["independent", "smooth"])
def model(request) -> Model:
    """A stand-in for the transformer."""
    return request.param


@pytest.fixture(scope="session")
def noise() -> np.ndarray:
    """The latents every run starts from."""
    return np.random.default_rng(99).standard_normal(SHAPE, np.float32)


@pytest.fixture(scope="session")
def run_ours() -> Callable[[Schedule, Model, np.ndarray], list[np.ndarray]]:
    """Runs one of our schedules; the latents after each step."""

    def run(schedule: Schedule, model: Model, noise: np.ndarray) -> list[np.ndarray]:
        update = jax.jit(schedule.update)
        state, trajectory = schedule.init_state(jnp.asarray(noise)), []
        for step, timestep in enumerate(schedule.timesteps):
            velocity = model(step, float(timestep), np.asarray(state.sample))
            state = update(state, jnp.asarray(velocity), schedule.coefficients(step))
            trajectory.append(np.asarray(state.sample))
        return trajectory

    return run


@pytest.fixture(scope="session")
def run_diffusers() -> Callable[..., list[np.ndarray]]:
    """Runs a scheduler of diffusers as its Wan pipeline does; the latents after each step."""

    def run(scheduler, model: Model, noise: np.ndarray) -> list[np.ndarray]:
        scheduler.set_begin_index(0)
        sample, trajectory = torch.from_numpy(noise), []
        for step, timestep in enumerate(scheduler.timesteps):
            velocity = torch.from_numpy(model(step, float(timestep), sample.numpy()))
            sample = scheduler.step(velocity, timestep, sample, return_dict=False)[0]
            trajectory.append(sample.numpy())
        return trajectory

    return run


@pytest.fixture(scope="session")
def make_pair() -> Callable[..., tuple[Schedule, object]]:
    """Our schedule and diffusers' scheduler for the same run, with fields of the configuration."""

    def make(name: str, steps: int, flow_shift: float, **fields) -> tuple[Schedule, object]:
        ours = make_schedule(
            name, num_inference_steps=steps, flow_shift=flow_shift, config=fields or None
        )
        if name == "unipc":
            wan = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
            theirs = UniPCMultistepScheduler(**wan, flow_shift=flow_shift, **fields)
        else:
            theirs = FlowMatchEulerDiscreteScheduler(shift=flow_shift, **fields)
        theirs.set_timesteps(steps)
        return ours, theirs

    return make
