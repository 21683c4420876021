"""What comes out of a plan: a row per layout. Knows no compiler."""

import dataclasses
import math
from collections.abc import Callable, Mapping

from wan_tpu.planner.compile import StageFacts
from wan_tpu.planner.costs import Attention
from wan_tpu.planner.estimate import Seconds
from wan_tpu.planner.job import UNGUIDED
from wan_tpu.planner.kernels import KernelCycles
from wan_tpu.sharding.layout import Layout


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """Bytes per device that stay while a model serves.

    Attributes:
        components: weights, by component of the model; of two experts both.
        context: keys and values of text and pictures, each expert's, while a video is made.
        condition: what its steps are told of pictures, each expert's, likewise.
        state: the scheduler's state, and what a step cache keeps with it, likewise.
        carried: what a stage hands to its next run besides, by the stage's name: the
            autoencoder's cache.
    """

    components: Mapping[str, int]
    context: int
    condition: int
    state: int
    carried: Mapping[str, int]

    @property
    def weights(self) -> int:
        """All weights."""
        return sum(self.components.values())

    @property
    def parts(self) -> dict[str, int]:
        """All of it by name, weights first."""
        kept = {"context": self.context, "condition": self.condition, "state": self.state}
        return {**self.components, **kept}

    def during(self, stage: str, output_bytes: int) -> int:
        """Everything that lives while a stage runs, its own arguments included.

        Args:
            stage: by its name in `wan_tpu.planner.job.STAGES`.
            output_bytes: of the stage: what it makes is not there yet.
        """
        name = stage.removesuffix(UNGUIDED)
        if name in ("text", "image") or name.startswith("encode"):
            return self.weights + self.carried.get(name, 0)
        if name == "context":
            return self.weights + max(self.context - output_bytes, 0)
        if name == "condition":
            return self.weights + self.context + max(self.condition - output_bytes, 0)
        video = self.context + self.condition + self.state
        return self.weights + video + self.carried.get(name, 0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage of a row.

    Attributes:
        facts: what the compiler says.
        runs: how often a video runs it.
        served_bytes: peak per device with everything resident that is resident when serving.
        seconds: of one run; None when it does not compile.
    """

    facts: StageFacts
    runs: int
    served_bytes: int
    seconds: Seconds | None


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
        model_flops: of a denoising step on all devices: the model's own arithmetic, without what is
            padded.
        peak_flops: of all devices, a second, in bfloat16.
    """

    layout: Layout
    stages: Mapping[str, StagePlan]
    resident: Resident
    limit_bytes: int
    kernels: Mapping[Attention, KernelCycles]
    uncounted: Mapping[Attention, str]
    model_flops: float
    peak_flops: float

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
    def step_range(self) -> tuple[float, float]:
        """Seconds of one denoising step: by the peaks and by the compiler's count, least first.

        Infinite when it does not compile or was not looked at.
        """
        plan = self.stages.get("step")
        if plan is None or plan.seconds is None:
            return math.inf, math.inf
        return plan.seconds.range

    @property
    def mfu(self) -> tuple[float, float]:
        """Share of the devices' peak that the model's own arithmetic takes, least and most."""
        low, high = self.step_range
        at_peak = self.model_flops / self.peak_flops
        return at_peak / high, at_peak / low

    @property
    def video_seconds(self) -> float:
        """Of all stages that were looked at, as often as a video runs them, by the peaks."""
        return self._sum(lambda seconds: seconds.total)

    @property
    def video_range(self) -> tuple[float, float]:
        """The same by the peaks and by the compiler's count, the less first."""
        by_compiler = self._sum(lambda seconds: seconds.by_compiler)
        return min(self.video_seconds, by_compiler), max(self.video_seconds, by_compiler)

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
