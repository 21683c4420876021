"""A run, top to bottom: model, data, state, steps, checkpoints, result.

The folder decides where it begins. A step's numbers are read when the next one has been started, so
the devices do not wait for the host; a checkpoint is begun between steps and written meanwhile.
"""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from wan_tpu.dataset.loader import PreparedDataset
from wan_tpu.dataset.prepare import open_or_prepare
from wan_tpu.dataset.sample import Batch
from wan_tpu.errors import BadNumbersError, InputError, OutputError
from wan_tpu.geometry import Geometry
from wan_tpu.pipeline.progress import Progress, Watch
from wan_tpu.training.agreed import agreed, check_same_data, check_same_folder
from wan_tpu.training.checkpoint import Checkpoints
from wan_tpu.training.config import TrainingConfig
from wan_tpu.training.config_check import load_options
from wan_tpu.training.export import export_states
from wan_tpu.training.flops import step_flops
from wan_tpu.training.log import TrainingLog
from wan_tpu.training.metrics import (
    FINISHED,
    STOPPED,
    Ended,
    Line,
    Meter,
    Outcome,
    Saved,
    Stage,
    Started,
)
from wan_tpu.training.padding import padded_shapes
from wan_tpu.training.place import place_for_training
from wan_tpu.training.run_folder import RunFolder
from wan_tpu.training.run_samples import RunSamples
from wan_tpu.training.settings import settings_of
from wan_tpu.training.step import Metrics
from wan_tpu.training.trainer import States, Trainer

logger = logging.getLogger(__name__)

STEPS_A_LOOK = 10
"""How often several processes agree on what the clock says."""

OnLine = Callable[[Line], None]


def train(
    config: TrainingConfig,
    folder: RunFolder,
    *,
    on_progress: OnLine | None = None,
    on_sample: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    peak_flops: float | None = None,
) -> Outcome:
    """Trains until the last step or until it is asked to stop; begins or goes on.

    JAX has been started. Several processes run it alike on one folder that all of them see.

    Args:
        config: of the run, checked.
        folder: open; of one that goes on, its configuration is the same.
        on_progress: told of every line of the log.
        on_sample: told how far a video is that is made on the way.
        should_stop: asked between steps, in all processes with the same answer; then the state is
            saved and the run ends in order.
        peak_flops: bfloat16 operations a second of one device, for MFU; None where not known.

    Returns:
        How far it is, and what came of it where it is at its end.

    Raises:
        InputError: the configuration does not fit the model, the devices or the data.
        MismatchError: the processes do not see one run folder, or not the same data.
        CheckpointError: files of the model, or the newest checkpoint, are damaged.
        OutputError: something cannot be written; the last checkpoint is whole.
        OutOfMemoryError: it does not fit the devices.
        BadNumbersError: the loss is no number, or a sample's; the last checkpoint is from before.
        Cancelled: it was asked to stop before the first step.
    """
    optimiser = config.optimiser
    if config.train.steps <= optimiser.warmup_steps:
        logger.warning(
            "%d steps end inside the warm-up of %d: the learning rate stays below %g",
            config.train.steps,
            optimiser.warmup_steps,
            optimiser.learning_rate,
        )
    check_same_folder(folder.path)
    description = load_options(config).open_model()
    trainer = Trainer(config, place_for_training(config, description))
    with Checkpoints(folder.checkpoints, config.save.keep) as checkpoints:
        begin = checkpoints.steps[-1] if checkpoints.steps else 0
        board = folder.tensorboard if folder.leads else None
        with _log(folder, board, begin) as log:
            run = _Run(trainer, folder, checkpoints, log, on_progress or (lambda line: None))
            should_stop = should_stop or (lambda: False)
            samples = RunSamples(
                trainer,
                folder,
                tell=run.tell,
                on_progress=on_sample or (lambda progress: None),
                should_stop=should_stop,
            )
            try:
                return run.train(begin, samples, should_stop, peak_flops)
            except Exception as error:
                run.tell_failure(error)
                raise


def _log(folder: RunFolder, board: Path | None, step: int) -> Any:
    """Of the process that writes; the others' lines go nowhere."""
    if folder.leads:
        return TrainingLog(folder.log, board, step=step)
    return _NoLog()


class _NoLog:
    """A log of a process that writes none."""

    def __enter__(self) -> "_NoLog":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, line: Line) -> None:
        """Nothing."""


@dataclasses.dataclass(slots=True)
class _Pending:
    """A step whose numbers have not been read.

    Attributes:
        step: done with it.
        metrics: on the devices.
        batch: its samples.
    """

    step: int
    metrics: Metrics
    batch: Batch


class _Run:
    """What the loop holds: one method for each thing that happens in it."""

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        checkpoints: Checkpoints,
        log: Any,
        on_line: OnLine,
    ):
        self.trainer, self.folder, self.config = trainer, folder, trainer.config
        self.checkpoints, self._log, self._on_line = checkpoints, log, on_line
        self._shapes = padded_shapes(trainer.step.trained.weights())
        self._saved_at = time.monotonic()
        self._read_at = time.monotonic()
        self._last = 0
        self._begin = self._step = 0
        self._saving: tuple[int, float] | None = None
        self._watch = Watch(self._compiles)

    def train(
        self,
        begin: int,
        samples: RunSamples,
        should_stop: Callable[[], bool],
        peak_flops: float | None,
    ) -> Outcome:
        """From the state after `begin` steps; see `wan_tpu.training.run.train`."""
        config, steps = self.config, self.config.train.steps
        model = self.trainer.model
        settings = settings_of(self.trainer)
        self.tell(Started(step=begin, steps=steps, time=time.time(), settings=settings))
        data = self._open_data(begin)
        states = self._states(begin)
        peak = None if peak_flops is None else peak_flops * model.mesh.size
        meter = Meter(steps=steps, num_samples=len(data), peak_flops=peak)
        batches = data.batches(
            config.train.batch, seed=config.train.seed, start=begin, workers=config.data.workers
        )
        samples.begin(begin)
        pending: _Pending | None = None
        step, is_stopped, self._begin = begin, False, begin
        while step < steps:
            batch = next(batches)
            self._step = step
            self.trainer.compile(batch.geometry, self._watch)
            if should_stop():
                is_stopped = True
                break
            states, metrics = self.trainer.run(states, batch, step, data.empty_text)
            if pending is not None:
                self._read(pending, meter)
            step += 1
            pending = _Pending(step, metrics, batch)
            self._tell_saved()
            saves, has_samples = self._is_due(step), samples.are_due(step)
            if saves or has_samples:
                self._read(pending, meter)
                pending = None
            if saves:
                self._save(step, states)
            if has_samples:
                samples.make(step, states)
                self._read_at = time.monotonic()
        if pending is not None:
            self._read(pending, meter)
        self._save_last(step, begin, states)
        samples.finish(step, states)
        return self._end(step, states, data, is_stopped=is_stopped)

    def _save_last(self, step: int, begin: int, states: States) -> None:
        """The last checkpoint is on the disk."""
        if step not in self.checkpoints.steps and step > begin:
            self._save(step, states)
        self.checkpoints.wait()
        self._tell_saved()

    def _end(
        self, step: int, states: States, data: PreparedDataset, *, is_stopped: bool
    ) -> Outcome:
        """At the end of the training, the result."""
        steps, result = self.config.train.steps, None
        if step >= steps:
            self.tell(Stage(step=step, name="export", time=time.time()))
            result = export_states(
                self.trainer, states, self.folder.path, step=step, data_digest=data.digest
            )
        reason = STOPPED if is_stopped else FINISHED
        self.tell(Ended(step=step, time=time.time(), reason=reason))
        return Outcome(step=step, steps=steps, result=result)

    def _open_data(self, step: int) -> PreparedDataset:
        """The data, encoded first where they are clips."""
        self.tell(Stage(step=step, name="data", time=time.time()))
        config, description = self.config, self.trainer.model.description

        def on_progress(progress: Progress) -> None:
            logger.info("%s: %d of %d", progress.stage, progress.done, progress.total)

        data = open_or_prepare(
            Path(config.data.path),
            self.folder.path / "data",
            description,
            on_progress=on_progress,
        )
        self.trainer.step.trained.check_captions(
            [sample.caption for sample in data.manifest.samples]
        )
        check_same_data(data.digest)
        self.folder.note_data(data.digest)
        for geometry in data.geometries:
            self._check_length(geometry)
        return data

    def _check_length(self, geometry: Geometry) -> None:
        """Refuses samples of which nothing is left to learn."""
        if geometry.latent_frames == 1 and self.config.data.image_probability == 1:
            raise InputError(
                "data.image_probability is 1 and there are samples of one frame, of which nothing "
                "is left to learn"
            )

    def _states(self, step: int) -> States:
        """As the newest checkpoint has them, or as they begin."""
        self.tell(Stage(step=step, name="load", time=time.time()))
        if not step:
            return self.trainer.load()
        self.trainer.load_frozen()
        return self.checkpoints.restore(step, self.trainer.step, self.trainer.state_names)

    def _read(self, pending: _Pending, meter: Meter) -> None:
        """Waits for a step's numbers and writes its line.

        Raises:
            BadNumbersError: the loss, or the gradient, is no finite number.
        """
        metrics: Metrics = jax.tree.map(np.asarray, pending.metrics)
        now = time.monotonic()
        seconds, self._read_at = now - self._read_at, now
        config, geometry = self.config, pending.batch.geometry
        expert = self.trainer.expert_of(pending.step - 1)
        meter.add(
            loss=float(metrics.loss),
            gradient_norm=float(metrics.gradient_norm),
            seconds=seconds,
            tokens=geometry.num_tokens * config.train.batch,
            flops=self._flops(geometry),
            sigmas=metrics.sigma.tolist(),
            losses=metrics.losses.tolist(),
            experts=[self._short_name(expert)] * config.train.batch
            if len(self.trainer.model.description.kind.experts) > 1
            else (),
        )
        is_finite = np.isfinite(metrics.loss) and np.isfinite(metrics.gradient_norm)
        if pending.step % config.train.log_every == 0 or not is_finite:
            self.tell(
                meter.line(
                    step=pending.step,
                    learning_rate=float(metrics.learning_rate),
                    samples_seen=pending.step * config.train.batch,
                )
            )
        if not is_finite:
            raise BadNumbersError(f"training step {pending.step}")

    def _flops(self, geometry: Geometry) -> float:
        shape = self.trainer.step.shape
        image_tokens = 0
        if shape.num_pictures:
            image_tokens = self.trainer.model.image_tokens(shape.num_pictures)
        return step_flops(
            self.trainer.step.denoiser.config,
            geometry,
            self.config.train.batch,
            trains_weights=self.config.train.trains == "full",
            image_tokens=image_tokens,
        )

    def _short_name(self, expert: str) -> str:
        experts = self.trainer.model.description.kind.experts
        return "high" if expert == experts[0] else "low"

    def _is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be begun, the same in every process."""
        save = self.config.save
        by_steps = save.every_steps and step % save.every_steps == 0
        # Of several processes one has the clock, and asking it waits for the devices.
        may_ask = jax.process_count() == 1 or step % STEPS_A_LOOK == 0
        minutes = (time.monotonic() - self._saved_at) / 60
        by_clock = save.every_minutes and may_ask and agreed(minutes >= save.every_minutes)
        return bool(by_steps or by_clock) and step < self.config.train.steps

    def _compiles(self, progress: Progress) -> None:
        """Says so before: other processes may have the program already, and must wait."""
        if not progress.done:
            self.tell(Stage(step=self._step, name=progress.stage, time=time.time()))
        elif self._step == self._begin:  # what has been loaded and compiled is no step's time
            self._read_at = time.monotonic()

    def _save(self, step: int, states: States) -> None:
        # A step of its own kind: who watches must not take it for one that hangs.
        self.tell(Stage(step=step, name="save", time=time.time()))
        self.checkpoints.wait()
        self._tell_saved()  # the one before
        seconds = self.checkpoints.save(step, states, {"step": step}, self._shapes)
        self._saved_at = time.monotonic()
        self._saving = step, seconds

    def _tell_saved(self) -> None:
        """Once the checkpoint that was begun last is on the disk."""
        if self._saving is not None and not self.checkpoints.is_saving:
            step, seconds = self._saving
            self._saving = None
            self.tell(Saved(step=step, time=time.time(), seconds=seconds))

    def tell_failure(self, error: Exception) -> None:
        """Says in the log why the run ends; a full disk must not hide the error itself."""
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        with contextlib.suppress(OutputError):
            self.tell(Ended(step=self._last, time=time.time(), reason=reason))

    def tell(self, line: Line) -> None:
        """Writes a line, and tells whoever listens."""
        self._last = line.step
        self._log.write(line)
        self._on_line(line)
