"""What is planned and what comes out: a job, and a row per layout. Knows no compiler."""

import dataclasses
import math
from collections.abc import Callable, Mapping

from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.geometry import Geometry
from wan_tpu.planner.compile import StageFacts
from wan_tpu.planner.costs import Attention
from wan_tpu.planner.estimate import Seconds
from wan_tpu.planner.hardware import Slice
from wan_tpu.planner.kernels import KernelCycles
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import Layout

STAGES = ("text", "context", "start", "step", "latents", "decode-first", "decode-next")
"""In the order they run."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is planned: a model, a video, a slice.

    Attributes:
        description: the model.
        request: the video, complete.
        geometry: its sizes.
        where: the slice.
        dtype: of weights and activations.
        attention: one of `wan_tpu.attention.api.IMPLEMENTATIONS`.
        stages: those of `STAGES` to look at.
    """

    description: ModelDescription
    request: VideoRequest
    geometry: Geometry
    where: Slice
    dtype: str = "bfloat16"
    attention: str = "auto"
    stages: tuple[str, ...] = STAGES

    @property
    def batch(self) -> int:
        """2 with guidance, 1 without."""
        return 2 if self.request.uses_guidance else 1

    def runs(self, stage: str) -> int:
        """How often a video runs a stage."""
        steps = self.request.num_inference_steps
        assert steps is not None, "the request is complete"
        return {"step": steps, "decode-next": self.geometry.latent_frames - 1}.get(stage, 1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """Bytes per device that stay while a model serves.

    Attributes:
        text_encoder: its weights.
        transformer: its weights.
        vae: its weights.
        context: keys and values of the text, while a video is made.
        state: the scheduler's state, while a video is made.
    """

    text_encoder: int
    transformer: int
    vae: int
    context: int
    state: int

    @property
    def weights(self) -> int:
        """All weights."""
        return self.text_encoder + self.transformer + self.vae

    def during(self, stage: str) -> int:
        """Everything that lives while a stage runs, its own arguments included."""
        video = {"text": 0, "context": 0}.get(stage, self.context + self.state)
        return self.weights + video


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage of a row.

    Attributes:
        facts: what the compiler says.
        runs: how often a video runs it.
        served_bytes: peak per device with everything resident that is resident when serving.
        seconds: of one run; None when it does not compile.
        share_of_peak: of one run.
    """

    facts: StageFacts
    runs: int
    served_bytes: int
    seconds: Seconds | None
    share_of_peak: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LayoutPlan:
    """One row: a layout on the slice.

    Attributes:
        layout: the split.
        stages: by name, in the order they run.
        resident: bytes that stay.
        limit_bytes: what a device has.
        kernels: static counts, by shape.
        uncounted: kernels that go by their FLOPs at peak, and why.
    """

    layout: Layout
    stages: Mapping[str, StagePlan]
    resident: Resident
    limit_bytes: int
    kernels: Mapping[Attention, KernelCycles]
    uncounted: Mapping[Attention, str]

    @property
    def peak_bytes(self) -> int:
        """Most bytes of any stage, per device."""
        return max(plan.served_bytes for plan in self.stages.values())

    @property
    def misfits(self) -> list[str]:
        """Stages that do not fit, in the order they run."""
        return [
            name
            for name, plan in self.stages.items()
            if plan.facts.failure or plan.served_bytes > self.limit_bytes
        ]

    @property
    def step_seconds(self) -> float:
        """Of one denoising step; infinite when it does not compile or was not looked at."""
        plan = self.stages.get("step")
        return plan.seconds.total if plan is not None and plan.seconds is not None else math.inf

    @property
    def video_seconds(self) -> float:
        """Of all stages that were looked at, as often as a video runs them."""
        return self._sum(lambda seconds: seconds.total)

    @property
    def video_seconds_by_compiler(self) -> float:
        """The same with the compiler's own count of everything but attention."""
        return self._sum(lambda seconds: seconds.by_compiler)

    def _sum(self, of_run: Callable[[Seconds], float]) -> float:
        total = 0.0
        for plan in self.stages.values():
            if plan.seconds is None:
                return math.inf
            total += plan.runs * of_run(plan.seconds)
        return total


def served_bytes(facts: StageFacts, resident_bytes: int) -> int:
    """Peak of a stage while everything that serving keeps is there.

    Its own arguments are part of what is resident: they count once. A stage that does not compile
    has no peak of its own.
    """
    own = max(facts.peak_bytes - facts.argument_bytes, 0)
    return max(facts.peak_bytes, own + resident_bytes)
