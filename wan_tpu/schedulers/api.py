"""Builds a schedule by name: what the denoising loop, the planner and the tests call."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from wan_tpu.errors import InputError, UnknownNameError
from wan_tpu.request import SCHEDULERS, SIGMA_SCHEDULERS
from wan_tpu.schedulers.base import Schedule
from wan_tpu.schedulers.euler import make_euler_schedule, make_given_euler_schedule
from wan_tpu.schedulers.renoise import make_renoise_schedule
from wan_tpu.schedulers.unipc import make_unipc_schedule


def make_schedule(
    name: str,
    *,
    num_inference_steps: int,
    flow_shift: float,
    config: Mapping[str, Any] | None = None,
    num_last_steps: int | None = None,
) -> Schedule:
    """The schedule of one run.

    Args:
        name: one of `wan_tpu.request.SCHEDULERS`.
        num_inference_steps: denoising steps, at least 1.
        flow_shift: shift of the levels towards high noise, above 0; takes the place of the
            configuration's own.
        config: the model's `scheduler_config.json`, of either diffusers class; None for Wan's.
        num_last_steps: how many of the steps run, the last ones; None for all.

    Raises:
        UnknownNameError: there is no such scheduler.
        InputError: the number of steps or the shift is out of range.
        CheckpointError: the configuration asks for something that is not implemented.
    """
    if num_inference_steps < 1:
        raise InputError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
    if not (math.isfinite(flow_shift) and flow_shift > 0):
        raise InputError(f"flow_shift must be a positive number, got {flow_shift}")
    match name:
        case "unipc":
            schedule = make_unipc_schedule(num_inference_steps, flow_shift, config or {})
        case "euler":
            schedule = make_euler_schedule(num_inference_steps, flow_shift, config or {})
        case _:
            raise UnknownNameError("scheduler", name, SCHEDULERS)
    return schedule if num_last_steps is None else schedule.last(num_last_steps)


def make_given_schedule(
    name: str,
    sigmas: Sequence[float],
    *,
    config: Mapping[str, Any] | None = None,
    num_last_steps: int | None = None,
) -> Schedule:
    """The schedule of a run over given noise levels.

    Args:
        name: one of `wan_tpu.request.SIGMA_SCHEDULERS`.
        sigmas: falling, each above 0 and at most 1; the last step leads to 0.
        config: as in `make_schedule`. Its shift is not used.
        num_last_steps: how many of the steps run, the last ones; None for all.

    Raises:
        UnknownNameError: there is no such scheduler.
        InputError: two levels coincide in float32.
        CheckpointError: the configuration asks for something that is not implemented.
    """
    match name:
        case "euler":
            schedule: Schedule = make_given_euler_schedule(sigmas, config or {})
        case "renoise":
            schedule = make_renoise_schedule(sigmas, config or {})
        case _:
            raise UnknownNameError("scheduler of sigmas", name, SIGMA_SCHEDULERS)
    return schedule if num_last_steps is None else schedule.last(num_last_steps)
