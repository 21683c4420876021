"""Re-noising: each step jumps to the clean video and takes fresh noise for the next level.

What models distilled by distribution matching (DMD, Yin et al., arXiv 2311.18828 and 2405.14867)
and by rCM (arXiv 2510.08431) are sampled with. With `latents = (1 - sigma) * video + sigma * noise`
and a velocity `noise - video`,

    video = latents - sigma * velocity
    latents = (1 - next_sigma) * video + next_sigma * fresh noise

so that the last step, to sigma 0, gives the video itself. It is not a solver: the steps need a
model that was distilled for their levels. After FastVideo's `DmdDenoisingStage` and rCM's
`wan2pt1_t2v_rcm_infer.py`, whose times are the levels used here, `sin t / (sin t + cos t)`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from wan_tpu.schedulers.base import Latents, Scalar, Schedule
from wan_tpu.schedulers.euler import IMPLEMENTED
from wan_tpu.schedulers.sigmas import given_levels, read_num_train_timesteps, require_implemented


class RenoiseState(NamedTuple):
    """What passes from step to step.

    Attributes:
        sample: the latents, any shape, float32.
    """

    sample: Latents


class RenoiseCoefficients(NamedTuple):
    """The scalars of one step, `[]`, float32.

    Attributes:
        sigma: this step's noise level.
        next_sigma: share of fresh noise in the next latents.
        next_video: share of the video in them, `1 - next_sigma`.
    """

    sigma: Scalar
    next_sigma: Scalar
    next_video: Scalar


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RenoiseSchedule(Schedule[RenoiseState, RenoiseCoefficients]):
    """Re-noising over given levels; see `Schedule` for the methods."""

    renoises: ClassVar[bool] = True

    def coefficients(self, step: int) -> RenoiseCoefficients:
        """The scalars of one step, computed in float64."""
        assert 0 <= step < self.num_steps, (step, self.num_steps)
        sigma, next_sigma = self.sigmas[step : step + 2]
        return RenoiseCoefficients(
            sigma=np.asarray(sigma, np.float32),
            next_sigma=np.asarray(next_sigma, np.float32),
            next_video=np.asarray(1 - next_sigma, np.float32),
        )

    def first_latents(
        self, noise: Float32[np.ndarray, "*latents"]
    ) -> Float32[np.ndarray, "*latents"]:
        """See `Schedule.first_latents`: the first level's share of the noise, as rCM begins."""
        return np.float32(self.sigmas[0]) * noise

    def init_state(self, sample: Float[Array, "*latents"]) -> RenoiseState:
        """The state before the first step; there is no history."""
        return RenoiseState(sample=jnp.asarray(sample, jnp.float32))

    @staticmethod
    def update(
        state: RenoiseState,
        model_output: Float[Array, "*latents"],
        coefficients: RenoiseCoefficients,
        noise: Latents | None = None,
    ) -> RenoiseState:
        """One step on the device: to the video, and back under fresh noise."""
        assert noise is not None
        video = state.sample - coefficients.sigma * model_output.astype(jnp.float32)
        return RenoiseState(
            sample=video * coefficients.next_video + noise * coefficients.next_sigma
        )


def make_renoise_schedule(sigmas: Sequence[float], config: Mapping[str, Any]) -> RenoiseSchedule:
    """The schedule of a run.

    Raises:
        CheckpointError: `config` asks for something else than flow matching.
        InputError: the noise levels coincide.
    """
    require_implemented(config, IMPLEMENTED)
    timesteps, levels = given_levels(sigmas, read_num_train_timesteps(config))
    return RenoiseSchedule(timesteps=timesteps, sigmas=levels)
