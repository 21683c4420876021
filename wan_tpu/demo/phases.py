"""What every training phase of the embedded models shares: its settings, its loop, its checkpoints.

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

Inputs = tuple[torch.Tensor, ...]


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
    device: str = "cpu"
    compile: bool = True
    checkpoint_every: int = 250
    progress: bool = True


def normal(rng: np.random.Generator, shape: tuple[int, ...], device: str = "cpu") -> torch.Tensor:
    """Standard normal noise, float32, on a device; what it is follows from `rng` and the device."""
    if device == "cpu":
        return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))
    # Numpy needs 32 ms for the noise of a step that takes an accelerator 18.
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    return torch.randn(shape, generator=generator, device=device)


class StepGraph:
    """A loss and its gradients as one CUDA graph, for models of thousands of small operations.

    Launched one by one they take 70 ms a step on an H200, whatever the batch.

    Args:
        loss_of: as `run_phase` takes it.
        inputs: of one step; every later step's have their shapes.
        parameters: whose gradients are wanted. They keep them: a step writes them anew.
    """

    def __init__(self, loss_of: Callable[..., torch.Tensor], inputs: Inputs, parameters: list):
        self._inputs = [part.clone() for part in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # libraries choose their kernels before anything is recorded
                loss_of(*self._inputs).backward()
                for parameter in parameters:
                    parameter.grad = None
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._loss = loss_of(*self._inputs)
            self._loss.backward()

    def __call__(self, inputs: Inputs) -> torch.Tensor:
        """The loss of a step; its gradients are the parameters'."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._loss


def run_phase(
    phase: Phase,
    run: Run,
    modules: dict[str, torch.nn.Module],
    optimizers: list[torch.optim.Optimizer],
    draw: Callable[[int], Inputs],
    loss_of: Callable[..., torch.Tensor],
    after_step: Callable[[int], None] | None = None,
) -> None:
    """Runs (or resumes, or skips when it is done) one phase.

    Args:
        phase: its schedule.
        run: the run it belongs to; checkpoints go to `run.work / f"{phase.name}.pt"`.
        modules: what is trained or kept, by its name in the checkpoint; an EMA copy is one too.
        optimizers: stepped together; their learning rates are peaks that the schedule scales.
        draw: what a step is fed, of the same shapes in every step, on the run's device.
        loss_of: the loss of what was drawn, not yet differentiated.
        after_step: called when the optimizers have stepped.
    """
    path = run.work / f"{phase.name}.pt"
    first = _load_checkpoint(path, modules, optimizers) if path.exists() else 0
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    parameters = [p for opt in optimizers for group in opt.param_groups for p in group["params"]]
    smooth, started = None, time.monotonic()
    graph = None
    bar = tqdm(
        range(first, phase.steps),
        phase.name,
        initial=first,
        total=phase.steps,
        disable=not run.progress,
    )
    for step in bar:
        _set_rates(optimizers, peaks, phase.rate_factor(step))
        inputs = draw(step)
        if run.device == "cpu":
            loss = loss_of(*inputs)
            loss.backward()
        else:
            graph = graph or StepGraph(loss_of, inputs, parameters)
            loss = graph(inputs)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            if graph is None:
                optimizer.zero_grad(set_to_none=True)
        if after_step is not None:
            after_step(step)
        value = loss.detach().clone()  # not read at every step: an accelerator would wait for it
        smooth = value if smooth is None else 0.98 * smooth + 0.02 * value
        if step % 20 == 0:
            bar.set_postfix(loss=f"{float(smooth):.4f}")
        if (step + 1) % run.checkpoint_every == 0 or step + 1 == phase.steps:
            _set_rates(
                optimizers, peaks, 1.0
            )  # a checkpoint holds the peaks: a resumed run's start
            _save_checkpoint(path, modules, optimizers, step + 1)
            logger.info(
                "%s: step %d of %d, loss %.5f, %.0f s",
                phase.name, step + 1, phase.steps, float(smooth), time.monotonic() - started,
            )  # fmt: skip


def _set_rates(
    optimizers: list[torch.optim.Optimizer], peaks: list[list[float]], factor: float
) -> None:
    for optimizer, rates in zip(optimizers, peaks, strict=True):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor


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
