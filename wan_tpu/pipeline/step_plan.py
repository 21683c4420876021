"""Which program, parameters and guidance each denoising step takes: a table made before the run.

It is made on the host from the request and the schedule alone, so every process of a slice makes
the same. Experts that take turns, guidance that stops half-way and few-step samplers are other
tables; the loop (`denoise.py`) knows none of them.
"""

import dataclasses

from wan_tpu.request import VideoRequest
from wan_tpu.schedulers.base import Schedule

TRANSFORMER = "transformer"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One denoising step.

    Attributes:
        component: whose parameters predict the velocity.
        guidance_scale: of classifier-free guidance; at 1 or below the prompt alone is evaluated.
    """

    component: str = TRANSFORMER
    guidance_scale: float

    @property
    def batch(self) -> int:
        """Entries of the transformer's batch: 2 with guidance (prompt, negative prompt), else 1."""
        return 2 if self.guidance_scale > 1 else 1


def plan_steps(request: VideoRequest, schedule: Schedule) -> tuple[PlannedStep, ...]:
    """The steps of a run, in order.

    Args:
        request: complete (`VideoRequest.resolved`).
        schedule: of the request.
    """
    assert request.guidance_scale is not None, "resolve the request first"
    step = PlannedStep(guidance_scale=request.guidance_scale)
    return (step,) * schedule.num_steps
