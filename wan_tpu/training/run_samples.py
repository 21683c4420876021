"""When a run makes videos, where they go, and what its log says of them."""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from wan_tpu.errors import Cancelled
from wan_tpu.pipeline.progress import Progress
from wan_tpu.training.agreed import agreed
from wan_tpu.training.export import learnt_of
from wan_tpu.training.metrics import Line, Sampled, Stage
from wan_tpu.training.run_folder import RunFolder
from wan_tpu.training.sample_requests import sample_requests
from wan_tpu.training.samples import BASE, Sampler, folder_of_step
from wan_tpu.training.trainer import States, Trainer


class RunSamples:
    """The samples of a run as it goes; nothing where its configuration wants none."""

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        *,
        tell: Callable[[Line], None],
        on_progress: Callable[[Progress], None],
        should_stop: Callable[[], bool],
    ):
        """Loads and compiles nothing.

        Args:
            trainer: of the run.
            folder: of the run.
            tell: writes a line of the log.
            on_progress: told how far a video is.
            should_stop: asked between denoising steps, in all processes with the same answer.
        """
        self._trainer, self._folder = trainer, folder
        self._tell, self._on_progress, self._should_stop = tell, on_progress, should_stop
        self._sampler: Sampler | None = None

    def begin(self, step: int) -> None:
        """The base's, where they are not there: what cannot be made is known before any step.

        Raises:
            Cancelled: the run is asked to stop; and what `Sampler` raises.
        """
        config = self._trainer.config.samples
        if not config.every_steps:
            return
        self._tell(Stage(step=step, name="samples of the base", time=time.time()))
        requests = sample_requests(config, self._trainer.model.description)
        self._sampler = Sampler(
            self._trainer,
            requests,
            on_progress=self._on_progress,
            should_cancel=self._should_stop,
        )
        base = self._folder.samples / BASE
        if not agreed(self._sampler.has(base)):
            self._told(step, self._sampler.base(base))

    def are_due(self, step: int) -> bool:
        """Whether between the steps; those of the last step come after its checkpoint."""
        train, every = self._trainer.config.train, self._trainer.config.samples.every_steps
        return bool(every) and step % every == 0 and step < train.steps

    def finish(self, step: int, states: States) -> None:
        """Those of the last step, where they are not there."""
        if self._sampler is None or step < self._trainer.config.train.steps:
            return
        if not agreed(self._sampler.has(self._folder_of(step))):
            self.make(step, states)

    def make(self, step: int, states: States) -> None:
        """Videos of the average where one is kept; who is asked to stop has none of this step."""
        assert self._sampler is not None, "begin first"
        self._tell(Stage(step=step, name="samples", time=time.time()))
        learnt = learnt_of(states, ema=self._trainer.config.optimiser.ema_decay is not None)
        with contextlib.suppress(Cancelled):
            self._told(step, self._sampler.trained(learnt, self._folder_of(step)))

    def _folder_of(self, step: int) -> Path:
        return self._folder.samples / folder_of_step(step)

    def _told(self, step: int, paths: Sequence[Path]) -> None:
        files = [path.relative_to(self._folder.path).as_posix() for path in paths]
        self._tell(Sampled(step=step, time=time.time(), files=files))
