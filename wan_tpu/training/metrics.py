"""What a training tells while it runs: the kinds of line, and what several steps come to. No JAX.

`Meter` makes lines of steps, `log.TrainingLog` keeps them, `progress` and `status` show them.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from wan_tpu.errors import WanTpuError

SIGMA_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Of the buckets that losses are reported by: the loss at high noise is many times that at low, so
that one mean of all says little but what was drawn."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A process begins, or goes on, after `step`.

    Attributes:
        step: that is done; 0 at first.
        steps: that the training shall have.
        time: seconds since 1970; so of every line.
        settings: what was chosen: layout, devices, attention, dtypes, versions.
    """

    step: int
    steps: int
    time: float
    settings: Mapping[str, object]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Something before or between the steps begins, for example `load`, `compile`."""

    step: int
    name: str
    time: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The optimiser's steps since the last such line; means over them, but for `step`.

    Attributes:
        step: the last of them, from 1.
        steps: that the training shall have.
        time: seconds since 1970.
        loss: weighted, as it was minimised; None where it was no finite number.
        loss_by_sigma: unweighted, by bucket of sigma, for example `0.2-0.4`; those that were drawn.
        loss_by_expert: likewise, by `high` and `low`; empty for one transformer.
        gradient_norm: before clipping.
        learning_rate: of the last step.
        seconds: of a step.
        samples_per_second: over all devices; so the next two.
        tokens_per_second: latent tokens, padding not counted.
        mfu: share of the devices' peak that the model's own arithmetic takes, without what is
            computed twice; None where the peak is not known.
        epoch: how often each sample was seen, on average.
    """

    step: int
    steps: int
    time: float
    loss: float | None
    loss_by_sigma: Mapping[str, float | None]
    loss_by_expert: Mapping[str, float | None]
    gradient_norm: float | None
    learning_rate: float
    seconds: float
    samples_per_second: float
    tokens_per_second: float
    mfu: float | None
    epoch: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint of the state after `step` is on the disk.

    Attributes:
        seconds: that the steps waited for it.
    """

    step: int
    time: float
    seconds: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """Videos were made of the state after `step`.

    Attributes:
        files: below the run folder.
    """

    step: int
    time: float
    files: Sequence[str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The process leaves after `step`, in order.

    Attributes:
        reason: `finished`, `stopped`, or what failed.
    """

    step: int
    time: float
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How `wan_tpu.training.run.train` left a run.

    Attributes:
        step: that is done, and saved.
        steps: that the training shall have.
        result: what was trained, as it is used: a file of an adapter or of vectors, or a model's
            folder; None where steps are left.
    """

    step: int
    steps: int
    result: Path | None

    @property
    def is_finished(self) -> bool:
        """Whether no step is left."""
        return self.step >= self.steps


FINISHED, STOPPED = "finished", "stopped"
"""Reasons of `Ended`."""

Line = Started | Stage | Step | Saved | Sampled | Ended
KINDS = (Started, Stage, Step, Saved, Sampled, Ended)


def bucket_of(sigma: float) -> str:
    """The bucket of `SIGMA_EDGES` that a noise level is in, as lines name it; 1 is in the last."""
    for low, high in itertools.pairwise(SIGMA_EDGES):
        if sigma < high:
            return f"{low:g}-{high:g}"
    return f"{SIGMA_EDGES[-2]:g}-{SIGMA_EDGES[-1]:g}"


class Meter:
    """Adds steps up until the line of them is asked for."""

    def __init__(self, *, steps: int, num_samples: int, peak_flops: float | None = None):
        """Begins with no step.

        Args:
            steps: that the training shall have.
            num_samples: in the data; an epoch is so many.
            peak_flops: of all devices together, a second, in the dtype that is computed in; None
                where it is not known.
        """
        self._steps, self._num_samples, self._peak = steps, num_samples, peak_flops
        self._reset()

    def _reset(self) -> None:
        self._count = self._samples = self._tokens = 0
        self._seconds = self._flops = self._loss = self._norm = 0.0
        self._sums: dict[str, dict[str, list[float]]] = {"sigma": {}, "expert": {}}

    def add(
        self,
        *,
        loss: float,
        gradient_norm: float,
        seconds: float,
        tokens: int,
        flops: float,
        sigmas: Sequence[float],
        losses: Sequence[float],
        experts: Sequence[str] = (),
    ) -> None:
        """One step.

        Args:
            loss: weighted mean of the batch.
            gradient_norm: before clipping.
            seconds: from the step before to this one.
            tokens: of the whole batch.
            flops: of the whole batch: forward and backward of the model, without what is computed
                twice.
            sigmas: of each sample.
            losses: unweighted, of each sample.
            experts: of each sample, `high` or `low`; none for one transformer.
        """
        self._count += 1
        self._samples += len(sigmas)
        self._tokens += tokens
        self._seconds += seconds
        self._flops += flops
        self._loss += loss
        self._norm += gradient_norm
        for sigma, each in zip(sigmas, losses, strict=True):
            self._sums["sigma"].setdefault(bucket_of(sigma), []).append(each)
        for expert, each in zip(experts, losses, strict=bool(experts)):
            self._sums["expert"].setdefault(expert, []).append(each)

    def line(self, *, step: int, learning_rate: float, samples_seen: int) -> Step:
        """The line of the steps since the last one; begins anew.

        Args:
            step: the last of them.
            learning_rate: of that step.
            samples_seen: since the training's beginning.

        Raises:
            WanTpuError: no step was added.
        """
        if not self._count:
            raise WanTpuError(f"there is no step before {step} to tell of")
        seconds = self._seconds
        mfu = None
        if self._peak and seconds and self._flops:
            mfu = self._flops / seconds / self._peak
        line = Step(
            step=step,
            steps=self._steps,
            time=time.time(),
            loss=finite(self._loss / self._count),
            loss_by_sigma=_means(self._sums["sigma"]),
            loss_by_expert=_means(self._sums["expert"]),
            gradient_norm=finite(self._norm / self._count),
            learning_rate=learning_rate,
            seconds=seconds / self._count,
            samples_per_second=_rate(self._samples, seconds),
            tokens_per_second=_rate(self._tokens, seconds),
            mfu=mfu,
            epoch=samples_seen / self._num_samples,
        )
        self._reset()
        return line


def _means(lists: Mapping[str, Sequence[float]]) -> dict[str, float | None]:
    return {name: finite(sum(each) / len(each)) for name, each in sorted(lists.items())}


def _rate(number: int, seconds: float) -> float:
    return number / seconds if seconds else 0.0


def finite(value: float) -> float | None:
    """The number, or None: JSON has neither NaN nor infinity."""
    return value if math.isfinite(value) else None
