"""What every training phase of wan-tiny shares: its settings, its loop, its checkpoints.

A phase is a number of steps with one learning-rate schedule. All randomness of a step is drawn from
(seed, phase name, step), so a run that was stopped and resumed sees the same batches as one that
was not. This file knows torch but neither the autoencoder nor the denoiser.
"""

import dataclasses
import logging
import math
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """The schedule of one phase: linear warm-up, the peak, then a cosine to a hundredth of it."""

    name: str
    steps: int
    batch: int
    learning_rate: float
    warmup_steps: int = 100
    hold: float = 0.0  # the share of the steps before the cosine begins

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"phase {self.name} needs at least one step and one sample")

    def rate_factor(self, step: int) -> float:
        """The learning rate of `step` as a fraction of the peak."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        decay = max(0.0, (step / self.steps - self.hold) / (1 - self.hold))
        return warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * decay)))

    def rng(self, seed: int, step: int) -> np.random.Generator:
        """The randomness of one step, the same whether the run was interrupted or not."""
        return np.random.default_rng((seed, zlib.crc32(self.name.encode()), step))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Where a training run keeps its things and how it uses the machine."""

    work: Path
    seed: int = 0
    compile: bool = True
    checkpoint_every: int = 250
    progress: bool = True


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise from a numpy generator, float32."""
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def run_phase(
    phase: Phase,
    run: Run,
    modules: dict[str, torch.nn.Module],
    optimizers: list[torch.optim.Optimizer],
    loss_of_step: Callable[[int], torch.Tensor],
    after_step: Callable[[int], None] | None = None,
) -> None:
    """Runs (or resumes, or skips when it is done) one phase.

    Args:
        phase: its schedule.
        run: the run it belongs to; checkpoints go to `run.work / f"{phase.name}.pt"`.
        modules: what is trained or kept, by its name in the checkpoint; an EMA copy is one too.
        optimizers: stepped together; their learning rates are peaks that the schedule scales.
        loss_of_step: the loss of a step, not yet differentiated.
        after_step: called when the optimizers have stepped.
    """
    path = run.work / f"{phase.name}.pt"
    first = _load_checkpoint(path, modules, optimizers) if path.exists() else 0
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    parameters = [p for opt in optimizers for group in opt.param_groups for p in group["params"]]
    smooth, started = None, time.monotonic()
    bar = tqdm(
        range(first, phase.steps),
        phase.name,
        initial=first,
        total=phase.steps,
        disable=not run.progress,
    )
    for step in bar:
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * phase.rate_factor(step)
        loss = loss_of_step(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if after_step is not None:
            after_step(step)
        value = float(loss.detach())
        smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
        if step % 20 == 0:
            bar.set_postfix(loss=f"{smooth:.4f}")
        if (step + 1) % run.checkpoint_every == 0 or step + 1 == phase.steps:
            for optimizer, rates in zip(optimizers, peaks, strict=True):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = (
                        rate  # a checkpoint holds the peak, which a resumed run reads back
                    )
            _save_checkpoint(path, modules, optimizers, step + 1)
            logger.info(
                "%s: step %d of %d, loss %.5f, %.0f s",
                phase.name, step + 1, phase.steps, smooth, time.monotonic() - started,
            )  # fmt: skip


def _save_checkpoint(path, modules, optimizers, step: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "step": step,
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)  # never half a checkpoint


def _load_checkpoint(path, modules, optimizers) -> int:
    state = torch.load(path, weights_only=True)
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"]
