"""The denoising loop: one program, called once per step, that can be watched and stopped."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from wan_tpu.errors import BadNumbersError
from wan_tpu.pipeline.progress import Watch
from wan_tpu.schedulers.base import Schedule
from wan_tpu.sharding.mesh import named


def denoise(
    step: Callable[..., Any],
    params: Any,
    context: Any,
    state: Any,
    schedule: Schedule,
    *,
    is_finite: Callable[[jax.Array], jax.Array],
    guidance_scale: float,
    mesh: Mesh,
    watch: Watch,
) -> Any:
    """Runs every step of a schedule.

    Args:
        step: the compiled step stage.
        params: the denoiser's parameters for a step.
        context: keys and values of cross-attention.
        state: the scheduler's, with the noise; its memory is taken over.
        schedule: noise levels and coefficients.
        is_finite: the compiled check of the scheduler's sample; the same answer in all processes.
        guidance_scale: of classifier-free guidance (unused by a program without it).
        mesh: where everything lies.
        watch: is told after every step, and may stop the loop.

    Returns:
        The scheduler's state; its `sample` are the finished latents.

    Raises:
        BadNumbersError: after a step that gave NaN or infinite numbers; later ones cannot heal it.
    """
    whole = named(mesh)

    def scalar(value: Any) -> jax.Array:
        array = np.asarray(value, np.float32)
        return jax.make_array_from_callback(array.shape, whole, lambda index: array[index])

    guidance = scalar(guidance_scale)
    with watch.stage("denoise", schedule.num_steps) as report:
        for index in range(schedule.num_steps):
            coefficients = jax.tree.map(scalar, schedule.coefficients(index))
            timestep = scalar(schedule.timesteps[index])
            state = step(params, context, state, coefficients, timestep, guidance)
            if not np.asarray(is_finite(state.sample)):  # waits for the step
                raise BadNumbersError(f"denoise, step {index + 1} of {schedule.num_steps}")
            report(index + 1)
    return state
