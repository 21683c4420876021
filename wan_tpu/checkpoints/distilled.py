"""What `model_index.json` says of a checkpoint that was distilled to few steps.

Two kinds of it say so: FastVideo's, by the class of their pipeline, and FastGen's (DMD2), by a
block with their levels. Read as vLLM-Omni reads them (`diffusion/models/dmd2/config.py`).
"""

from collections.abc import Mapping
from typing import Any

from wan_tpu.errors import CheckpointError, InputError
from wan_tpu.fast import EULER, FASTWAN_3, RENOISE, FastPreset
from wan_tpu.request import VideoRequest

DMD_PIPELINE = "WanDMDPipeline"
STEPS_KEYS = ("dmd_denoising_steps", "dmd_timesteps")
BLOCK = "dmd2_config"
LAST_TIMESTEP = 999
"""Where FastGen's levels begin when the block does not list them."""

_UPDATES = {"ode": EULER, "sde": RENOISE}


def read_distilled(index: Mapping[str, Any], where: str) -> FastPreset | None:
    """The preset of a checkpoint that was distilled; None for any other.

    Args:
        index: contents of `model_index.json`.
        where: what messages call it.

    Raises:
        CheckpointError: it says levels, or an update, that cannot be.
    """
    block = index.get(BLOCK)
    if block is not None:
        if not isinstance(block, Mapping):
            raise CheckpointError(f"{where}: {BLOCK} must be an object, got {block!r}")
        return _of_block(block, where)
    if index.get("_class_name") != DMD_PIPELINE:
        return None
    for key in STEPS_KEYS:
        if index.get(key) is not None:
            sigmas = _sigmas(index[key], f"{where}: {key}")
            return FastPreset(
                name=f"dmd-{len(sigmas)}",
                label=f"distilled by DMD, {len(sigmas)} steps",
                sigmas=sigmas,
                scheduler=RENOISE,
                source=f"model_index.json, {key}",
            )
    return FASTWAN_3


def _of_block(block: Mapping[str, Any], where: str) -> FastPreset:
    """FastGen's: timesteps, or a number of steps evenly from 999 to 0, cut to whole numbers."""
    timesteps = block.get("denoising_timesteps")
    if timesteps is None:
        count = block.get("num_inference_steps", 4)
        if not isinstance(count, int) or not 1 <= count <= LAST_TIMESTEP:
            raise CheckpointError(
                f"{where}: {BLOCK} has num_inference_steps {count!r}; expected a whole number"
            )
        timesteps = [LAST_TIMESTEP * (count - step) // count for step in range(count)]
    solver, guidance = block.get("solver", "ode"), block.get("guidance_scale", 1.0)
    if solver not in _UPDATES:
        raise CheckpointError(f"{where}: {BLOCK} has solver {solver!r}; implemented: ode, sde")
    if guidance != 1:
        raise CheckpointError(
            f"{where}: {BLOCK} has guidance_scale {guidance!r}; implemented: 1, no guidance"
        )
    sigmas = _sigmas(timesteps, f"{where}: {BLOCK}")
    return FastPreset(
        name=f"dmd2-{len(sigmas)}",
        label=f"distilled by DMD2, {len(sigmas)} steps",
        sigmas=sigmas,
        scheduler=_UPDATES[solver],
        source=f"model_index.json, {BLOCK}",
    )


def _sigmas(timesteps: Any, where: str) -> tuple[float, ...]:
    """Levels from timesteps, of which 1000 are all noise."""
    try:
        sigmas = tuple(timestep / 1000 for timestep in timesteps)
        VideoRequest(prompt="distilled", sigmas=sigmas)
    except (TypeError, InputError):
        raise CheckpointError(
            f"{where}: timesteps must fall and lie above 0 and up to 1000, as 1000, 757, 522 do; "
            f"got {str(timesteps)[:80]}"
        ) from None
    return sigmas
