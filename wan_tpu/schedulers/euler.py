"""The flow-matching Euler solver: one straight step along the velocity.

After diffusers' `FlowMatchEulerDiscreteScheduler`. With `latents = (1 - sigma) * video + sigma *
noise` the velocity `noise - video` is the derivative of the latents by sigma, so a step from one
level to the next is `latents + (next_sigma - sigma) * velocity`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wan_tpu.schedulers.base import Latents, Scalar, Schedule
from wan_tpu.schedulers.sigmas import (
    euler_levels,
    given_levels,
    read_num_train_timesteps,
    require_implemented,
)

IMPLEMENTED = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "invert_sigmas": False,
    "stochastic_sampling": False,
}
"""Fields of a scheduler configuration, Euler's or UniPC's, that bear on this solver."""


class EulerState(NamedTuple):
    """What passes from step to step.

    Attributes:
        sample: the latents, any shape, float32.
    """

    sample: Latents


class EulerCoefficients(NamedTuple):
    """The scalar of one step.

    Attributes:
        sigma_change: next sigma minus this one, negative; `[]`, float32.
    """

    sigma_change: Scalar


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EulerSchedule(Schedule[EulerState, EulerCoefficients]):
    """Euler steps over shifted flow-matching levels; see `Schedule` for the methods."""

    def coefficients(self, step: int) -> EulerCoefficients:
        """The scalar of one step, computed in float64."""
        assert 0 <= step < self.num_steps, (step, self.num_steps)
        change = self.sigmas[step + 1] - self.sigmas[step]
        return EulerCoefficients(sigma_change=np.asarray(change, np.float32))

    def init_state(self, sample: Float[Array, "*latents"]) -> EulerState:
        """The state before the first step; Euler has no history."""
        return EulerState(sample=jnp.asarray(sample, jnp.float32))

    @staticmethod
    def update(
        state: EulerState,
        model_output: Float[Array, "*latents"],
        coefficients: EulerCoefficients,
        noise: Latents | None = None,
    ) -> EulerState:
        """One step on the device: `sample + sigma_change * velocity`."""
        velocity = model_output.astype(jnp.float32)
        return EulerState(sample=state.sample + coefficients.sigma_change * velocity)


def make_euler_schedule(
    num_inference_steps: int, flow_shift: float, config: Mapping[str, Any]
) -> EulerSchedule:
    """The Euler schedule of a run.

    Raises:
        CheckpointError: `config` asks for something this solver does not do.
        InputError: the noise levels coincide.
    """
    require_implemented(config, IMPLEMENTED)
    timesteps, sigmas = euler_levels(
        num_inference_steps, flow_shift, read_num_train_timesteps(config)
    )
    return EulerSchedule(timesteps=timesteps, sigmas=sigmas)


def make_given_euler_schedule(sigmas: Sequence[float], config: Mapping[str, Any]) -> EulerSchedule:
    """Euler steps over given noise levels, which nothing shifts.

    As diffusers' class with `shift=1` and `set_timesteps(sigmas=...)`.

    Raises:
        CheckpointError: `config` asks for something this solver does not do.
        InputError: the noise levels coincide.
    """
    require_implemented(config, IMPLEMENTED)
    timesteps, levels = given_levels(sigmas, read_num_train_timesteps(config))
    return EulerSchedule(timesteps=timesteps, sigmas=levels)
