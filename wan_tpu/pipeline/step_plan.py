"""Which program, parameters and guidance each denoising step takes: a table made before the run.

It is made on the host from the request and the schedule alone, so every process of a slice makes
the same. Experts that take turns are a table here, and steps that reuse what an earlier one left;
guidance that stops half-way would be another. The loop (`denoise.py`) knows none of them.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from wan_tpu.attention.choice import Gate
from wan_tpu.family import TRANSFORMER
from wan_tpu.request import VideoRequest
from wan_tpu.schedulers.base import Schedule
from wan_tpu.step_cache import Blocks


class StepProgram(NamedTuple):
    """What tells the programs of a run's steps apart.

    Attributes:
        batch: entries of the transformer's batch.
        reuses: whether it leaves out the blocks.
        exact: whether attention is exact in every layer, of a model whose attention is not.
    """

    batch: int
    reuses: bool = False
    exact: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStep:
    """One denoising step.

    Attributes:
        component: whose parameters predict the velocity.
        guidance_scale: of classifier-free guidance; at 1 or below the prompt alone is evaluated.
        blocks: whether the transformer's run, or what they added at an earlier step is reused.
        exact: whether attention is exact in every layer, of a model whose attention is not.
    """

    component: str = TRANSFORMER
    guidance_scale: float
    blocks: Blocks = Blocks.COMPUTED
    exact: bool = False

    @property
    def batch(self) -> int:
        """Entries of the transformer's batch: 2 with guidance (prompt, negative prompt), else 1."""
        return 2 if self.guidance_scale > 1 else 1

    @property
    def program(self) -> StepProgram:
        """Which of a run's programs it takes; without blocks there is nothing to be exact."""
        reuses = self.blocks is Blocks.REUSED
        return StepProgram(self.batch, reuses=reuses, exact=self.exact and not reuses)


def plan_steps(
    request: VideoRequest,
    schedule: Schedule,
    *,
    experts: Sequence[str] = (TRANSFORMER,),
    boundary: float | None = None,
) -> tuple[PlannedStep, ...]:
    """The steps of a run, in order, as diffusers' `WanPipeline` takes them.

    Args:
        request: complete (`VideoRequest.resolved`).
        schedule: of the request.
        experts: whose parameters take turns, high noise first: one, or two.
        boundary: the smallest timestep of the first of two; None for one.
    """
    assert request.guidance_scale is not None, "resolve the request first"
    second_scale = request.guidance_scale_2
    high = PlannedStep(component=experts[0], guidance_scale=request.guidance_scale)
    low = PlannedStep(
        component=experts[-1],
        guidance_scale=request.guidance_scale if second_scale is None else second_scale,
    )
    return tuple(
        high if boundary is None or timestep >= boundary else low for timestep in schedule.timesteps
    )


def with_gate(steps: Sequence[PlannedStep], gate: Gate | None) -> tuple[PlannedStep, ...]:
    """A run's steps with what the gate of its attention says of them.

    Args:
        steps: all of them, those of each transformer.
        gate: of the model's attention; None where that is exact, or may be anything anywhere.
    """
    if gate is None:
        return tuple(steps)
    exact = gate.steps.exact(len(steps))
    return tuple(
        dataclasses.replace(step, exact=each) for step, each in zip(steps, exact, strict=True)
    )


def batches_of(steps: Sequence[PlannedStep]) -> list[int]:
    """Of the steps, each once: 1 without guidance, 2 with it."""
    return sorted({step.batch for step in steps})


def components_of(steps: Sequence[PlannedStep]) -> list[str]:
    """The transformers whose turn comes."""
    return sorted({step.component for step in steps})


def contexts_of(steps: Sequence[PlannedStep]) -> list[tuple[str, int]]:
    """What the steps attend to, as (component, batch): each transformer makes it anew for each."""
    return sorted({(step.component, step.batch) for step in steps})


def programs_of(steps: Sequence[PlannedStep]) -> list[StepProgram]:
    """Of the steps, each once: those with blocks first, exact ones after the others."""
    found = {step.program for step in steps}
    return sorted(found, key=lambda program: (program.reuses, program.exact, program.batch))
