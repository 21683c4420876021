"""The denoising loop: calls from a table, one per step, that can be watched and stopped."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from wan_tpu.errors import BadNumbersError
from wan_tpu.pipeline.progress import Watch
from wan_tpu.schedulers.base import Schedule
from wan_tpu.sharding.mesh import named, place
from wan_tpu.torch_bridge import Params
from wan_tpu.transformer.conditions import Condition
from wan_tpu.transformer.processors import Context

State = TypeVar("State")
"""Of a scheduler."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepCall(Generic[State]):
    """One step of a run, everything about it decided.

    Attributes:
        program: the compiled step stage.
        params: the denoiser's parameters for a step.
        context: keys and values of cross-attention, for the program's batch.
        numbers: `[n]`, float32, from `pack_numbers`.
        condition: what pictures add, the same at every step of an expert; None for nothing.
        noise: fresh noise in token form, of a schedule that renoises; else None.
    """

    program: Callable[..., tuple[State, jax.Array]]
    params: Params
    context: Context
    numbers: np.ndarray
    condition: Condition | None = None
    noise: jax.Array | None = None


def require_finite(are_finite: np.ndarray, where: str) -> None:
    """Refuses a step whose numbers went bad.

    Raises:
        BadNumbersError: says where.
    """
    if not are_finite.all():
        raise BadNumbersError(where)


def denoise(
    calls: Sequence[StepCall[State]],
    state: State,
    *,
    mesh: Mesh,
    watch: Watch,
    check: Callable[[np.ndarray, str], None] = require_finite,
) -> State:
    """Runs the calls one after the other.

    A step is dispatched before the one ahead of it has ended, so that the devices never wait for
    the host; it is reported, and the loop can be stopped, when it has ended.

    Args:
        calls: one per step.
        state: the scheduler's, with the noise; its memory is taken over.
        mesh: where everything lies.
        watch: is told after every step, and may stop the loop.
        check: called after every step with what its program says is finite, and words for where;
            later steps cannot heal a number that is not.

    Returns:
        The scheduler's state; its `sample` are the finished latents.

    Raises:
        BadNumbersError: `check` said so.
    """
    whole = named(mesh)
    numbers = [place(call.numbers, whole) for call in calls]  # all at once, before the first step
    with watch.stage("denoise", len(calls)) as report:

        def finish(step: int, is_finite: jax.Array) -> None:
            # Waits for the step; the same in all processes.
            check(np.asarray(is_finite), f"denoise, step {step} of {len(calls)}")
            report(step)

        running: jax.Array | None = None
        for step, call in enumerate(calls):
            state, is_finite = call.program(
                call.params, call.context, state, numbers[step], call.condition, call.noise
            )
            if running is not None:
                finish(step, running)
            running = is_finite
        if running is not None:
            finish(len(calls), running)
    return state


def pack_numbers(schedule: Schedule, step: int, guidance_scale: float) -> np.ndarray:
    """What one step's program is told in numbers, as one array that travels at once.

    Args:
        schedule: noise levels and coefficients.
        step: from 0.
        guidance_scale: of classifier-free guidance (unused by a program without it).

    Returns:
        `[2 + coefficients]`, float32: timestep, guidance scale, the coefficients in order.
    """
    coefficients = jax.tree.leaves(schedule.coefficients(step))
    numbers = [schedule.timesteps[step], guidance_scale, *coefficients]
    return np.concatenate([np.ravel(np.asarray(number, np.float32)) for number in numbers])


def unpack_numbers(schedule: Schedule, numbers: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
    """`pack_numbers` undone, inside the program: timestep, guidance scale, coefficients."""
    like, structure = jax.tree.flatten(schedule.coefficients(0))
    ends = np.cumsum([array.size for array in like])[:-1]
    parts = jnp.split(numbers[2:], ends)
    coefficients = [part.reshape(array.shape) for part, array in zip(parts, like, strict=True)]
    return numbers[0], numbers[1], jax.tree.unflatten(structure, coefficients)
