"""One interface for a process in lock-step, whichever it is, and a job that all of them make."""

import enum
import os
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from wan_tpu.errors import Cancelled, WanTpuError
from wan_tpu.multihost.identity import Identity

T = TypeVar("T")


EXIT_LOST = os.EX_TEMPFAIL
"""75, the exit code of a process that lost another: start all of them again, and it may well do."""


class Outcome(enum.StrEnum):
    """How a process left a job."""

    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"


class Lockstep(Protocol):
    """A process among those of a slice; made by `wan_tpu.multihost.join.join`.

    In this order: `agree`, `loaded`, then for each job `begin`, `should_stop` as often as the
    pipeline asks, `leave`; at last `close`. Process 0 decides in each of them, the others do as
    they are told.
    """

    def agree(self, identity: Identity) -> str:
        """Waits until all have said what they are; returns the address for JAX's coordination.

        Raises:
            MismatchError: they differ; names what, and whose.
        """
        ...

    def loaded(self) -> None:
        """This process is ready for jobs; process 0 waits for all others."""
        ...

    def begin(self, task: dict[str, Any] | None) -> dict[str, Any]:
        """The next job: process 0 gives it and the others get it.

        Args:
            task: JSON-ready; None where this process does not lead.
        """
        ...

    def note(self, stage: str, *, is_over: bool) -> None:
        """The pipeline is at this stage, or has just finished it."""
        ...

    def should_stop(self, asked: Callable[[], bool]) -> bool:
        """Whether to leave the job at this point: what process 0's `asked` says, in all of them."""
        ...

    def leave(self, outcome: Outcome, reason: str = "") -> str:
        """This process has left the job. Process 0 waits for all others, and checks them.

        Returns:
            Why process 0 failed, where that is what stopped this one; else nothing.
        """
        ...

    def give_up(self, reason: str, *, is_mismatch: bool = False) -> None:
        """This process cannot go on; the others learn why, and whether it is worth a new try."""
        ...

    def close(self) -> None:
        """Process 0: no more jobs, all end. The others: waits for that."""
        ...


class Alone:
    """The only process there is; see `Lockstep`."""

    def agree(self, identity: Identity) -> str:
        """See `Lockstep.agree`; there is nobody to connect."""
        return ""

    def loaded(self) -> None:
        """See `Lockstep.loaded`."""

    def begin(self, task: dict[str, Any] | None) -> dict[str, Any]:
        """See `Lockstep.begin`."""
        assert task is not None
        return task

    def note(self, stage: str, *, is_over: bool) -> None:
        """See `Lockstep.note`."""

    def should_stop(self, asked: Callable[[], bool]) -> bool:
        """See `Lockstep.should_stop`."""
        return asked()

    def leave(self, outcome: Outcome, reason: str = "") -> str:
        """See `Lockstep.leave`."""
        return ""

    def give_up(self, reason: str, *, is_mismatch: bool = False) -> None:
        """See `Lockstep.give_up`."""

    def close(self) -> None:
        """See `Lockstep.close`."""


def run_in_step(
    process: Lockstep,
    task: dict[str, Any] | None,
    make: Callable[[dict[str, Any], Callable[[], bool]], T],
    *,
    asked: Callable[[], bool] = lambda: False,
) -> T:
    """Makes one job in every process.

    Args:
        process: this one.
        task: of process 0; None in the others, which wait for its.
        make: makes the task; asks, at the same places in all processes, whether to stop, and then
            raises `Cancelled`.
        asked: whether process 0 was asked to stop.

    Returns:
        What `make` does.

    Raises:
        Cancelled: process 0 was asked to stop.
        WanTpuError: process 0 failed, which stopped this one.
    """
    task = process.begin(task)
    try:
        result = make(task, lambda: process.should_stop(asked))
    except Cancelled:
        failure = process.leave(Outcome.STOPPED)
        if failure:
            raise WanTpuError(f"process 0 failed: {failure}") from None
        raise
    except BaseException as error:
        process.leave(Outcome.FAILED, f"{type(error).__name__}: {str(error)[:300]}")
        raise
    process.leave(Outcome.DONE)
    return result
