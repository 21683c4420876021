"""How good is it: losses at fixed noise levels and videos, of what was trained beside the base.

A training's own loss says mostly which noise levels were drawn. Here clips, noise levels and noise
are fixed (the noise by the clip's place alone), so the base, every step of a run and every layout
see the same, and the same command gives the same numbers to the bit.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wan_tpu.dataset.loader import PreparedDataset, open_dataset
from wan_tpu.dataset.manifest import is_prepared
from wan_tpu.dataset.sample import Batch
from wan_tpu.pipeline.programs import Programs
from wan_tpu.pipeline.progress import Progress, Watch
from wan_tpu.pipeline.whole_file import reporting, write_json_atomically
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.mesh import named, place
from wan_tpu.training.agreed import check_same_data, check_same_folder
from wan_tpu.training.asked import Asked
from wan_tpu.training.checkpoint import Checkpoints
from wan_tpu.training.config import TrainingConfig
from wan_tpu.training.config_check import load_options
from wan_tpu.training.evaluation_page import BASE, PAGE, REPORT, TRAINED, write_page
from wan_tpu.training.export import learnt_of
from wan_tpu.training.metrics import finite
from wan_tpu.training.objective import SigmaRange
from wan_tpu.training.place import place_for_training
from wan_tpu.training.run_folder import read_run
from wan_tpu.training.sample_requests import sample_requests
from wan_tpu.training.samples import Learnt, Sampler, file_of
from wan_tpu.training.step import TrainingStep
from wan_tpu.training.trainer import Trainer

logger = logging.getLogger(__name__)

LEVELS = 7
"""Noise levels that a transformer is judged at: 0.125 to 0.875 where it has the whole range."""

SEED = 0
"""Of the noise: the same for all runs, so that they compare."""

Losses = dict[str, dict[float, list[float | None]]]
"""By expert and noise level: of each clip, None where it was no finite number."""


def evaluate(
    folder: Path,
    config: TrainingConfig,
    asked: Asked,
    output: Path,
    *,
    on_stage: Callable[[str], None] = logger.info,
    on_progress: Callable[[Progress], None] | None = None,
    should_cancel: Callable[[], bool] | None = None,
) -> Path:
    """Writes `evaluation.json`, `index.html` and the videos. JAX has been started.

    Several processes run it alike on one folder that all of them see; process 0 writes.

    Args:
        folder: of the run; only read.
        config: of the run; its `[machine]` says where this runs.
        asked: what of it.
        output: a folder; made where it is not there, files of an earlier evaluation are replaced.
        on_stage: told what begins.
        on_progress: told how far it is inside a stage, and what compiles.
        should_cancel: asked between clips and between denoising steps, in all processes with the
            same answer.

    Returns:
        The page.

    Raises:
        InputError: there is no such checkpoint, the run keeps no average, the data is of another
            model, or the model cannot make the videos.
        CheckpointError: files of the model or the checkpoint are damaged.
        OutOfMemoryError: it does not fit.
        OutputError: something cannot be written.
        MismatchError: the processes do not see one run folder, or not the same data.
        Cancelled: `should_cancel` said so.
    """
    check_same_folder(folder)
    run, description = read_run(folder), load_options(config).open_model()
    config = without_chance(config)
    samples = dataclasses.replace(config.samples, prompts=asked.prompts)
    requests = sample_requests(samples, description)
    data = open_dataset(asked.data or data_of(folder, config), description)
    check_same_data(data.digest)
    watch = Watch(on_progress, should_cancel)
    model = place_for_training(config, description)
    trainer = Trainer(with_batch(config, model.layout.dp, 1), model)
    with Checkpoints(folder / "checkpoints", keep=1_000_000) as checkpoints:
        step = checkpoints.chosen(asked.step)
        if not jax.process_index():
            with reporting(output):
                output.mkdir(parents=True, exist_ok=True)
        on_stage("load")
        trainer.load_frozen()
        clips = FixedClips(trainer, data, asked.clips, watch)
        sampler = None
        if requests:
            sampler = Sampler(
                trainer, requests, on_progress=on_progress, should_cancel=should_cancel
            )
        on_stage("losses of the base")
        losses = {BASE: clips.losses(trainer.begin())}
        if sampler is not None:
            on_stage("videos of the base")
            sampler.base(output / BASE)
        on_stage(f"load step {step}")
        states = checkpoints.restore(step, trainer.step, trainer.state_names)
        learnt = learnt_of(states, ema=asked.ema)
        del states  # and with it the moments
    on_stage(f"losses of step {step}")
    losses[TRAINED] = clips.losses(learnt)
    if sampler is not None:
        on_stage(f"videos of step {step}")
        sampler.trained(learnt, output / TRAINED)
    report = {
        "run": str(folder),
        "model": description.name,
        "trains": config.train.trains,
        "step": step,
        "ema": asked.ema,
        "config_digest": run["config_digest"],
        "data": {"folder": str(data.folder), "digest": data.digest, "clips": clips.names},
        "layout": str(trainer.model.layout),
        "noise_seed": SEED,
        "losses": _rows(losses),
        "videos": _videos(requests),
    }
    if jax.process_index():
        return output / PAGE
    write_json_atomically(output / REPORT, report)
    return write_page(output / PAGE, report)


def without_chance(config: TrainingConfig) -> TrainingConfig:
    """The run without what is left out at random: captions, a LoRA's inputs, first frames.

    The first frame is given where every sample of the run had it.
    """
    always = float(config.data.image_probability == 1)
    data = dataclasses.replace(config.data, caption_dropout=0.0, image_probability=always)
    return dataclasses.replace(
        config,
        data=data,
        lora=dataclasses.replace(config.lora, dropout=0.0),
        train=dataclasses.replace(config.train, seed=SEED),
    )


def data_of(folder: Path, config: TrainingConfig) -> Path:
    """Where a run's prepared samples are: it was given them, or it has made them."""
    given = Path(config.data.path)
    return given if is_prepared(given) else folder / "data"


def levels_of(trainer: Trainer, expert: str) -> tuple[float, ...]:
    """Noise levels at even distances inside the range that a transformer is asked for in use.

    They are the model's, whatever a run trains at, so that runs compare.
    """
    kind, low, high = trainer.model.description.kind, 0.0, 1.0
    if kind.boundary_ratio is not None:
        is_first = expert == kind.experts[0]
        low, high = (kind.boundary_ratio, 1.0) if is_first else (0.0, kind.boundary_ratio)
    steps = range(1, LEVELS + 1)
    return tuple(round(low + (high - low) * k / (LEVELS + 1), 6) for k in steps)


class FixedClips:
    """Clips of a dataset, and what a model loses on them.

    Attributes:
        names: of the clips, in the order of the losses.
    """

    def __init__(self, trainer: Trainer, data: PreparedDataset, count: int, watch: Watch):
        """Reads the clips.

        Args:
            trainer: whose model; with its frozen parameters.
            data: where they are from.
            count: how many, spread evenly over the data.
            watch: told what compiles, and asked between clips whether to go on.

        Raises:
            InputError: files of the data are gone or damaged.
        """
        self._trainer, self._empty_text, self._watch = trainer, data.empty_text, watch
        self._programs = Programs()
        numbers = [n * len(data) // count for n in range(count)] if count < len(data) else None
        self._batches = [
            data.batch_of(group) for group in _by_size(data, numbers or range(len(data)))
        ]
        self.names = [name for batch in self._batches for name in batch.names]

    def losses(self, learnt: Learnt) -> Losses:
        """Mean squares of each clip's velocity at each noise level, by transformer.

        Args:
            learnt: parameters, or what the training began with.
        """
        return {
            expert: {
                sigma: [
                    loss
                    for batch in self._batches
                    for loss in self._of(batch, expert, sigma, learnt)
                ]
                for sigma in levels_of(self._trainer, expert)
            }
            for expert in self._trainer.experts
        }

    def _of(self, batch: Batch, expert: str, sigma: float, learnt: Learnt) -> list[float | None]:
        """Of the clips of one size: as many at a time as the layout takes, then the next."""
        trainer, dp = self._trainer, self._trainer.model.layout.dp
        count = len(batch.names)
        filled = _filled(batch, -(-count // dp) * dp)
        of_step = _step_for(trainer, len(filled.names))
        level = place(np.float32(sigma), named(trainer.model.mesh))
        program = self._programs.get(of_step.loss_stage(batch.geometry), self._watch)
        self._watch.check()  # inside the program, processes wait for each other only so long
        inputs = trainer.inputs(expert, filled, 0, self._empty_text, of_step.shape)
        state = learnt[of_step.trained.state_name(expert)]
        losses, _ = program(state, inputs._replace(sigmas=SigmaRange(level, level)))
        return [finite(loss) for loss in np.asarray(losses)[:count].tolist()]


def with_batch(config: TrainingConfig, batch: int, parts: int) -> TrainingConfig:
    """The run with another number of samples."""
    train = dataclasses.replace(config.train, batch=batch, accumulate=parts)
    return dataclasses.replace(config, train=train)


def _step_for(trainer: Trainer, samples: int) -> TrainingStep:
    """The step for so many samples, one after the other where the layout takes one at a time."""
    step, parts = trainer.step, samples // trainer.model.layout.dp
    return dataclasses.replace(
        step,
        config=with_batch(step.config, samples, parts),
        shape=dataclasses.replace(step.shape, batch=samples, parts=parts),
    )


def _filled(batch: Batch, count: int) -> Batch:
    """So many samples: the last one again, as often as needed."""
    numbers = np.minimum(np.arange(count), len(batch.names) - 1)

    def of(array: np.ndarray | None) -> Any:
        return None if array is None else array[numbers]

    return Batch(
        geometry=batch.geometry,
        names=tuple(batch.names[n] for n in numbers),
        captions=tuple(batch.captions[n] for n in numbers) if batch.captions else (),
        latents=of(batch.latents),
        text=of(batch.text),
        condition=of(batch.condition),
        image=of(batch.image),
    )


def _by_size(data: PreparedDataset, numbers: Sequence[int]) -> list[list[int]]:
    """Places of clips, those of one size together."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number in numbers:
        groups.setdefault(data.manifest.samples[number].size, []).append(number)
    return list(groups.values())


def _rows(losses: Mapping[str, Losses]) -> list[dict[str, Any]]:
    """A row for each transformer and noise level: each clip's losses, and their mean."""
    return [
        {
            "expert": expert,
            "sigma": sigma,
            **{
                name: {"mean": _mean(found[expert][sigma]), "clips": found[expert][sigma]}
                for name, found in losses.items()
            },
        }
        for expert, levels in losses[BASE].items()
        for sigma in levels
    ]


def _videos(requests: Sequence[VideoRequest]) -> list[dict[str, Any]]:
    """A row for each prompt: where its two videos are, below the evaluation's folder."""
    return [
        {
            "prompt": request.prompt,
            "seed": request.seed,
            BASE: f"{BASE}/{file_of(number)}",
            TRAINED: f"{TRAINED}/{file_of(number)}",
        }
        for number, request in enumerate(requests)
    ]


def _mean(losses: Sequence[float | None]) -> float | None:
    """None where one is no number."""
    numbers = [loss for loss in losses if loss is not None]
    return sum(numbers) / len(numbers) if len(numbers) == len(losses) else None
