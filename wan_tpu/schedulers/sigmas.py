"""Noise levels and timesteps of flow matching, bit for bit those of diffusers 0.42.

Flow matching (Lipman et al., arXiv 2210.02747) mixes video and noise on a straight line,
`latents = (1 - sigma) * video + sigma * noise`, and the model predicts the velocity
`noise - video`. A shift `s` moves the levels towards high noise, `s x / (1 + (s - 1) x)`
(Esser et al., arXiv 2403.03206, section 5.3.2), because large videos drown in noise later than
small ones.

The two schedulers of diffusers place and round their levels differently. Both ways are kept,
down to the order of the operations, because the model sees the timesteps that come of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64

from wan_tpu.errors import CheckpointError, InputError

FIRST_SIGMA_GAP = 1e-6
"""How far UniPC's first sigma stays below 1, where the signal-to-noise ratio has no logarithm."""


def unipc_levels(
    num_inference_steps: int, flow_shift: float, num_train_timesteps: int
) -> tuple[Float32[np.ndarray, " steps"], Float64[np.ndarray, " steps+1"]]:
    """Timesteps and sigmas as diffusers' `UniPCMultistepScheduler` with `use_flow_sigmas`.

    Returns:
        timesteps: `[steps]`, float32 holding whole numbers: `sigma * num_train_timesteps` cut off.
        sigmas: `[steps + 1]`, float64 holding float32 values, the last one 0.
    """
    even = np.linspace(1, 1 / num_train_timesteps, num_inference_steps + 1)[:-1]
    sigmas = _shifted(even, flow_shift)
    if abs(sigmas[0] - 1) < FIRST_SIGMA_GAP:
        sigmas[0] -= FIRST_SIGMA_GAP
    timesteps = (sigmas * num_train_timesteps).astype(np.int64)
    return timesteps.astype(np.float32), _ended(sigmas)


def euler_levels(
    num_inference_steps: int, flow_shift: float, num_train_timesteps: int
) -> tuple[Float32[np.ndarray, " steps"], Float64[np.ndarray, " steps+1"]]:
    """Timesteps and sigmas as diffusers' `FlowMatchEulerDiscreteScheduler`.

    That class shifts twice: its constructor shifts the training levels, whose ends then bound an
    even grid, which is shifted again. The first pass runs in float32, the second in float64.

    Returns:
        timesteps: `[steps]`, float32, `sigma * num_train_timesteps` in float32.
        sigmas: `[steps + 1]`, float64 holding float32 values, the last one 0.
    """
    ends = np.array([num_train_timesteps, 1], np.float32) / np.float32(num_train_timesteps)
    first, last = (float(end) * num_train_timesteps for end in _shifted(ends, flow_shift))
    even = np.linspace(first, last, num_inference_steps) / num_train_timesteps
    sigmas = _shifted(even, flow_shift)
    timesteps = sigmas.astype(np.float32) * np.float32(num_train_timesteps)
    return timesteps, _ended(sigmas)


def given_levels(
    sigmas: Sequence[float], num_train_timesteps: int
) -> tuple[Float32[np.ndarray, " steps"], Float64[np.ndarray, " steps+1"]]:
    """Timesteps and sigmas of noise levels that are given: of a model that was distilled to them.

    No shift and no whole numbers: 5/6 is the timestep 833.33.

    Returns:
        timesteps: `[steps]`, float32, `sigma * num_train_timesteps` in float32.
        sigmas: `[steps + 1]`, float64 holding float32 values, the last one 0.
    """
    levels = _ended(np.asarray(sigmas, np.float64), "these sigmas", "take levels further apart")
    return levels[:-1].astype(np.float32) * np.float32(num_train_timesteps), levels


def read_num_train_timesteps(config: Mapping[str, Any]) -> int:
    """The number of noise levels of training; the model's timesteps count up to it.

    Raises:
        CheckpointError: the field is not a whole number above 1.
    """
    value = config.get("num_train_timesteps", 1000)
    if not isinstance(value, int) or value < 2:
        raise CheckpointError(
            f"scheduler config: num_train_timesteps must be a whole number above 1, got {value!r}"
        )
    return value


def require_implemented(config: Mapping[str, Any], implemented: Mapping[str, Any]) -> None:
    """Refuses a scheduler configuration that asks for something else than `implemented`.

    Args:
        config: fields of the model's `scheduler_config.json`; absent ones are taken as implemented.
        implemented: the one value of each field that this library implements.

    Raises:
        CheckpointError: names the first such field, its value and the value that works.
    """
    for field, value in implemented.items():
        if field in config and config[field] != value:
            raise CheckpointError(
                f"scheduler config: {field} is {config[field]!r}; only {value!r} is implemented"
            )


def _shifted(
    levels: Float[np.ndarray, " levels"], flow_shift: float
) -> Float[np.ndarray, " levels"]:
    """Moves noise levels in (0, 1] towards 1; keeps the dtype."""
    return flow_shift * levels / (1 + (flow_shift - 1) * levels)


def _ended(
    sigmas: Float64[np.ndarray, " steps"],
    what: str = "this flow shift",
    remedy: str = "use fewer steps or a shift nearer to 1",
) -> Float64[np.ndarray, " steps+1"]:
    """Appends 0 and rounds to float32, as diffusers stores them, in float64 for our arithmetic.

    Raises:
        InputError: two neighbouring levels coincide, so that a step would lead nowhere.
    """
    rounded = np.append(sigmas, 0).astype(np.float32).astype(np.float64)
    if not np.all(np.diff(rounded) < 0):
        raise InputError(
            f"{len(sigmas)} inference steps are too many for {what}: neighbouring noise levels "
            f"coincide; {remedy}"
        )
    return rounded
