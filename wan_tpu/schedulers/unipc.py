"""UniPC, the multistep predictor-corrector that Wan samples with.

After Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion
Models" (arXiv 2302.04867), in the form of diffusers' `UniPCMultistepScheduler` with flow sigmas:
data prediction, `B(h) = e^-h - 1` (called bh2), lower order at both ends of the run.

How a step comes about. Write the latents at noise level sigma as `alpha * video + sigma * noise`
with `alpha = 1 - sigma`, and let `lambda = log(alpha / sigma)` be the logarithm of the
signal-to-noise ratio. From level s to level t, `h = lambda_t - lambda_s`, the exact solution is
the old sample scaled down plus a mean of the model's estimates of the clean video on the way:

    sample_t = sigma_t / sigma_s * sample_s + alpha_t * (1 - e^-h) * mean

where late estimates weigh more. The solver replaces it by the estimate at s plus a
weighted sum of differences to estimates elsewhere. The weights make the formula exact for
polynomials in lambda of as high a degree as there are estimates: a linear system of at most
`solver_order` unknowns. The predictor uses estimates of earlier steps only. The corrector repeats
the step just made with one estimate more, the one at the predicted sample, which the next step
has to compute anyway: so it costs nothing, and it comes first thing in the next step.

All of this is linear in the samples and estimates, with weights that depend on the sigmas only.
So the host solves the systems in float64 and hands the device two rows of numbers per step. That
matters: bfloat16 in these small systems has spoiled pictures elsewhere, and diffusers' float32
loses digits by cancellation. Against a run in float64 throughout (50 steps, shift 3, independent
random velocities; relative to the range) it is off by 4e-7, 8e-6 and 2e-4 at orders 2, 3 and 4;
this module by 4e-7 at each. Order 4 is therefore not offered: there is nothing to compare it with.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from wan_tpu.errors import CheckpointError
from wan_tpu.schedulers.base import Latents, Scalar, Schedule, Weights
from wan_tpu.schedulers.sigmas import read_num_train_timesteps, require_implemented, unipc_levels

IMPLEMENTED = {
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "predict_x0": True,
    "solver_type": "bh2",  # bh1 divides by the infinite last h: diffusers returns NaN
    "lower_order_final": True,  # likewise without it
    "final_sigmas_type": "zero",
    "solver_p": None,
    "thresholding": False,
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}
"""Fields of a UniPC configuration with the one value of each that is implemented."""

SOLVER_ORDERS = (1, 2, 3)
"""Wan's files say 2."""

DIFFUSERS_DEFAULTS = {"prediction_type": "epsilon", "use_flow_sigmas": False}
"""What a file of diffusers' own class means where it leaves these fields out; none is Wan's."""


class UniPCState(NamedTuple):
    """What passes from step to step; all arrays have the latents' shape and are float32.

    Attributes:
        sample: the latents that the model sees next.
        last_sample: the corrected latents from which the last step set out.
        history: estimates of the clean latents at the last `solver_order` steps, newest first.
    """

    sample: Latents
    last_sample: Latents
    history: tuple[Latents, ...]


class UniPCCoefficients(NamedTuple):
    """The numbers of one step, float32.

    Attributes:
        sigma: this step's noise level, `[]`: turns velocity into an estimate of the clean latents.
        corrector: weights of (sample, last_sample, this estimate, *history) in the corrected
            sample, `[3 + solver_order]`.
        predictor: weights of (corrected sample, this estimate, *history without the oldest) in the
            next sample, `[1 + solver_order]`.
    """

    sigma: Scalar
    corrector: Weights
    predictor: Weights


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class UniPCSchedule(Schedule[UniPCState, UniPCCoefficients]):
    """UniPC over shifted flow-matching levels; see `Schedule` for the methods.

    Attributes:
        solver_order: estimates that a predictor step uses at most.
        disable_corrector: steps whose result is not corrected.
    """

    solver_order: int = 2
    disable_corrector: tuple[int, ...] = ()

    def coefficients(self, step: int) -> UniPCCoefficients:
        """The numbers of one step, computed in float64."""
        assert 0 <= step < self.num_steps, (step, self.num_steps)
        return UniPCCoefficients(
            sigma=np.asarray(self.sigmas[step], np.float32),
            corrector=self._corrector(step).astype(np.float32),
            predictor=self._predictor(step).astype(np.float32),
        )

    def init_state(self, sample: Float[Array, "*latents"]) -> UniPCState:
        """The state before the first step: the noise, and zeros for the history."""
        sample = jnp.asarray(sample, jnp.float32)
        return UniPCState(
            sample=sample,
            last_sample=jnp.zeros_like(sample),
            history=tuple(jnp.zeros_like(sample) for _ in range(self.solver_order)),
        )

    @staticmethod
    def update(
        state: UniPCState,
        model_output: Float[Array, "*latents"],
        coefficients: UniPCCoefficients,
        noise: Latents | None = None,
    ) -> UniPCState:
        """One step on the device: corrects the last step, then predicts the next sample."""
        velocity = model_output.astype(jnp.float32)
        clean = state.sample - coefficients.sigma * velocity
        corrected = _weighted_sum(
            coefficients.corrector, (state.sample, state.last_sample, clean, *state.history)
        )
        history = (clean, *state.history[:-1])
        sample = _weighted_sum(coefficients.predictor, (corrected, *history))
        return UniPCState(sample=sample, last_sample=corrected, history=history)

    def _later(self, skipped: int) -> dict[str, Any]:
        """See `Schedule._later`: the same steps stay uncorrected."""
        later = (step - skipped for step in self.disable_corrector)
        return {"disable_corrector": tuple(step for step in later if step >= 0)}

    def _order(self, step: int) -> int:
        """Estimates the predictor uses: fewer while history is short and towards the end."""
        return min(self.solver_order, step + 1, self.num_steps - step)

    def _predictor(self, step: int) -> Float64[np.ndarray, " weights"]:
        """Weights of (corrected sample, clean estimates newest first), float64."""
        order = self._order(step)
        row = np.zeros(1 + self.solver_order)
        row[: 1 + order] = self._step_weights(step, earlier=order - 1, corrects=False)
        return row

    def _corrector(self, step: int) -> Float64[np.ndarray, " weights"]:
        """Weights of (sample, last_sample, this estimate, *history), float64."""
        row = np.zeros(3 + self.solver_order)
        if step == 0 or step - 1 in self.disable_corrector:
            row[0] = 1.0  # the sample as it is
            return row
        order = self._order(step - 1)  # as many as the predictor that is corrected, plus this one
        weights = self._step_weights(step - 1, earlier=order - 1, corrects=True)
        row[1], row[2], row[3 : 3 + order] = weights[0], weights[-1], weights[1:-1]
        return row

    def _step_weights(
        self, start: int, *, earlier: int, corrects: bool
    ) -> Float64[np.ndarray, " weights"]:
        """Weights of the step from level `start` to the next one.

        Args:
            start: index of the level the step sets out from.
            earlier: how many estimates before `start` take part.
            corrects: whether the estimate at the end of the step takes part.

        Returns:
            Weights of (sample at start, estimate at start, earlier estimates newest first, and
            with `corrects` the estimate at the end), float64.
        """
        sigma_start, sigma_end = self.sigmas[start], self.sigmas[start + 1]
        h = self._log_snr(start + 1) - self._log_snr(start)
        # Where the other estimates lie, in steps from the start: earlier ones negative, the end 1.
        backs = range(1, 1 + earlier)
        distances = [self._log_snr(start - back) - self._log_snr(start) for back in backs]
        ratios = np.array([distance / h for distance in distances] + [1.0] * corrects)
        scale = (1 - sigma_end) * -math.expm1(-h)
        others = scale * _difference_weights(h, ratios) / ratios
        return np.array([sigma_end / sigma_start, scale - others.sum(), *others])

    def _log_snr(self, level: int) -> float:
        """Logarithm of the signal-to-noise ratio, lambda in the paper; infinite at the end."""
        sigma = float(self.sigmas[level])
        return math.log1p(-sigma) - math.log(sigma) if sigma > 0 else math.inf


def make_unipc_schedule(
    num_inference_steps: int, flow_shift: float, config: Mapping[str, Any]
) -> UniPCSchedule:
    """The UniPC schedule of a run.

    Raises:
        CheckpointError: `config` asks for something this solver does not do.
        InputError: the noise levels coincide.
    """
    if config.get("_class_name") == "UniPCMultistepScheduler":
        config = DIFFUSERS_DEFAULTS | dict(config)
    require_implemented(config, IMPLEMENTED)
    solver_order = config.get("solver_order", 2)
    if solver_order not in SOLVER_ORDERS:
        raise CheckpointError(
            f"scheduler config: solver_order is {solver_order!r}; implemented: {SOLVER_ORDERS}"
        )
    timesteps, sigmas = unipc_levels(
        num_inference_steps, flow_shift, read_num_train_timesteps(config)
    )
    return UniPCSchedule(
        timesteps=timesteps,
        sigmas=sigmas,
        solver_order=solver_order,
        disable_corrector=tuple(config.get("disable_corrector") or ()),
    )


def _difference_weights(
    h: float, ratios: Float64[np.ndarray, " unknowns"]
) -> Float64[np.ndarray, " unknowns"]:
    """Weights of `(other estimate - estimate at the start) / ratio`, the paper's `a_m`.

    Solves the paper's equation for `sum_m a_m * ratio_m^(k-1)`, k = 1, 2, ...: its right side is
    `k! * g_k / (e^-h - 1)` with `g_0 = e^-h - 1` and `g_k = g_{k-1} / -h - 1 / k!`. With one
    unknown the paper and diffusers take 1/2, the limit for small steps, in place of the solution.

    Args:
        h: length of the step in log signal-to-noise ratio.
        ratios: `[unknowns]`: where the other estimates lie, in steps from the start.
    """
    if len(ratios) <= 1:
        return np.full(len(ratios), 0.5)
    right = []
    integral = math.expm1(-h)
    for k in range(1, 1 + len(ratios)):
        integral = integral / -h - 1 / math.factorial(k)
        right.append(math.factorial(k) * integral / math.expm1(-h))
    return np.linalg.solve(np.vander(ratios, increasing=True).T, np.array(right))


def _weighted_sum(weights: Weights, arrays: tuple[Latents, ...]) -> Latents:
    """The sum of `weights[i] * arrays[i]`, float32, left to right."""
    total = weights[0] * arrays[0]
    for index in range(1, len(arrays)):
        total = total + weights[index] * arrays[index]
    return total
