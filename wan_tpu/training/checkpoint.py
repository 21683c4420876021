"""Checkpoints of a run: the whole state, written while training goes on, read onto any layout.

orbax writes them, each process its part, and a folder that is half-written is none
(`wan_tpu/training/padding.py` says what another layout needs). What is random in a run follows from
its seed and the step, so the state is parameters, moments, average and the number of the step.
"""

import logging
import time
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from wan_tpu.errors import CheckpointError, InputError, OutputError
from wan_tpu.training.padding import (
    abstract_without_padding,
    padded_shapes,
    with_padding,
    without_padding,
)
from wan_tpu.training.step import TrainingStep

logger = logging.getLogger(__name__)

STATE, ABOUT = "state", "about"


class Checkpoints:
    """The checkpoints of a run, by the number of steps that are done. A context manager."""

    def __init__(self, folder: Path, keep: int):
        """Opens the folder, which is there.

        Args:
            folder: absolute, seen by all processes.
            keep: how many are kept, the newest.
        """
        self._folder = folder
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=False, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        """Those that are there and whole, oldest first."""
        return sorted(self._manager.all_steps())

    def chosen(self, step: int | None) -> int:
        """The step that is asked for; the newest when none is.

        Raises:
            InputError: it has no checkpoint, or there is none at all.
        """
        steps = self.steps
        if not steps:
            raise InputError(f"{self._folder.parent} has no checkpoint yet")
        if step not in (None, *steps):
            raise InputError(
                f"{self._folder.parent} has no checkpoint of step {step}; it has "
                f"{', '.join(map(str, steps))}"
            )
        return steps[-1] if step is None else step

    def save(self, step: int, states: Any, about: dict[str, Any], shapes: Any) -> float:
        """Begins to write the state after `step`; training may go on.

        Args:
            step: done so far.
            states: of all transformers that are trained.
            about: what else the run is to find there, JSON.
            shapes: `padded_shapes` of what is trained.

        Returns:
            Seconds that this took.

        Raises:
            OutputError: it cannot be written; those before stay.
        """
        begin = time.monotonic()
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{
                        STATE: ocp.args.StandardSave(without_padding(states, shapes)),
                        ABOUT: ocp.args.JsonSave(about),
                    }
                ),
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unwritable(step, error) from error
        return time.monotonic() - begin

    @property
    def is_saving(self) -> bool:
        """Whether what was begun is not on the disk yet."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Waits until what was begun is on the disk.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unwritable(None, error) from error

    def restore(self, step: int, training: TrainingStep, names: tuple[str, ...]) -> Any:
        """The states that a checkpoint holds, on the layout of `training`.

        Args:
            step: one of `steps`.
            training: whose states they are to be.
            names: of the states.

        Raises:
            CheckpointError: the checkpoint is damaged, or of another training.
        """
        like = dict.fromkeys(names, training.abstract_state())
        shapes = padded_shapes(training.trained.weights())
        target = abstract_without_padding(like, shapes)
        try:
            found = self._manager.restore(
                step, args=ocp.args.Composite(**{STATE: ocp.args.StandardRestore(target)})
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(
                f"the checkpoint of step {step} in {self._folder} cannot be read: {reason}"
            ) from error
        return with_padding(found[STATE], like, shapes)

    def _unwritable(self, step: int | None, error: Exception) -> OutputError:
        steps = self.steps
        last = f"step {steps[-1]} is the last that is whole" if steps else "there is none yet"
        what = "the checkpoint" if step is None else f"the checkpoint of step {step}"
        reason = " ".join(str(error).split())[:300]
        return OutputError(f"cannot write {what} in {self._folder}: {reason}; {last}")


def newest(folder: Path) -> int:
    """The newest whole checkpoint of a run.

    Raises:
        InputError: there is none.
    """
    with Checkpoints(folder, keep=1_000_000) as checkpoints:
        if not checkpoints.steps:
            raise InputError(f"{folder} holds no checkpoint yet")
        return checkpoints.steps[-1]
