"""What the steps of a run end with: latents, and which steps a step cache left out."""

import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from wan_tpu.pipeline.run import Run
from wan_tpu.pipeline.step_cache import told
from wan_tpu.pipeline.step_program import WithRatios, WithVelocity
from wan_tpu.step_cache import Blocks

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Denoised:
    """What the steps of a run end with.

    Attributes:
        latents: `[1, frames, height, width, channels]`, float32.
        computed: of each step, whether the transformer's blocks ran.
        ratios: `[steps, 2]`, of a run that measured them (`Keeps.RATIOS`); else None.
    """

    latents: np.ndarray
    computed: tuple[bool, ...]
    ratios: np.ndarray | None = None


def denoised(run: Run, carried: Any, latents: Callable[[jax.Array], jax.Array]) -> Denoised:
    """Reads what travelled from step to step, and says once what a step cache saved.

    Args:
        run: of the steps.
        carried: after the last one.
        latents: the program that makes them of tokens.
    """
    steps = len(run.steps)
    computed = tuple(step.blocks is not Blocks.REUSED for step in run.steps)
    if isinstance(carried, WithVelocity):
        computed = tuple(map(bool, np.asarray(carried.computed)[:steps]))
    ratios = np.asarray(carried.ratios)[:steps] if isinstance(carried, WithRatios) else None
    if run.cache is not None:
        said = told(run.cache, computed)
        logger.info(
            "step cache %s: %d of %d steps computed, %s",
            run.cache, said["computed"], steps, said["plan"],
        )  # fmt: skip
    return Denoised(latents=np.asarray(latents(carried.sample)), computed=computed, ratios=ratios)
