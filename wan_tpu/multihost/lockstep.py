"""One interface for a process in lock-step, whatever its rank, and a job that all of them run."""

import enum
import os
from collections.abc import Callable, Collection
from typing import Any, Protocol, TypeVar

from wan_tpu.errors import Cancelled, WanTpuError
from wan_tpu.media import NO_MEDIA, Media
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

    In this order: `agree`, `loaded`, then for each job `begin`, `should_stop` or `stopped` as often
    as the pipeline asks, `leave`; at last `close`. Process 0 decides in each of them, the followers
    obey. Each time that is asked is a barrier of the job: it has the same number in all processes.
    """

    def agree(self, identity: Identity) -> str:
        """Waits until all have sent their identity; returns the address for JAX's coordination.

        Raises:
            MismatchError: they differ; names what, and in which process.
        """
        ...

    def loaded(self) -> None:
        """This process is ready for jobs; process 0 waits for all others."""
        ...

    def begin(self, task: dict[str, Any] | None, media: Media = NO_MEDIA) -> dict[str, Any]:
        """The next job: process 0 gives it and the others get it.

        Args:
            task: JSON-ready; None in a follower.
            media: the pictures and clips that the task names, of process 0.
        """
        ...

    def receive_media(self) -> Media:
        """The pictures and clips of the job that has begun, the same in all processes.

        Raises:
            MediaError: what arrived is not what process 0 named.
        """
        ...

    def note(self, stage: str, *, is_over: bool) -> None:
        """The pipeline is at this stage, or has just finished it."""
        ...

    def should_stop(self, asked: Callable[[], bool]) -> bool:
        """Whether to leave the job at this barrier: process 0's `asked` decides, for all."""
        ...

    def stopped(self, asked: Callable[[], Collection[int]]) -> Collection[int]:
        """Which of several videos of a job end at this barrier: process 0's `asked` decides.

        Raises:
            WanTpuError: in a follower, that process 0 has left the job.
        """
        ...

    def leave(self, outcome: Outcome, reason: str = "") -> str:
        """This process has left the job. Process 0 waits for all others, and compares.

        Returns:
            Why process 0 failed, if that is what stopped this one; else nothing.
        """
        ...

    def tell_asked(self, reason: str) -> None:
        """This process is asked to end. Process 0 alone can stop the job: a follower tells it."""
        ...

    def others_asked(self) -> bool:
        """In process 0: whether a follower is asked to end; its own `asked` may count that, too."""
        ...

    def give_up(self, reason: str, *, is_mismatch: bool = False) -> None:
        """This process cannot go on; the others learn why, and whether it is worth a new try."""
        ...

    def close(self) -> None:
        """Process 0: no more jobs, all end. A follower: waits for that."""
        ...


class Alone:
    """The only process there is; see `Lockstep`."""

    def __init__(self) -> None:
        self._media = NO_MEDIA

    def agree(self, identity: Identity) -> str:
        """See `Lockstep.agree`; there is nobody to connect."""
        return ""

    def loaded(self) -> None:
        """See `Lockstep.loaded`."""

    def begin(self, task: dict[str, Any] | None, media: Media = NO_MEDIA) -> dict[str, Any]:
        """See `Lockstep.begin`."""
        assert task is not None
        self._media = media
        return task

    def receive_media(self) -> Media:
        """See `Lockstep.receive_media`."""
        return self._media

    def note(self, stage: str, *, is_over: bool) -> None:
        """See `Lockstep.note`."""

    def should_stop(self, asked: Callable[[], bool]) -> bool:
        """See `Lockstep.should_stop`."""
        return asked()

    def stopped(self, asked: Callable[[], Collection[int]]) -> Collection[int]:
        """See `Lockstep.stopped`."""
        return asked()

    def leave(self, outcome: Outcome, reason: str = "") -> str:
        """See `Lockstep.leave`."""
        self._media = NO_MEDIA
        return ""

    def tell_asked(self, reason: str) -> None:
        """See `Lockstep.tell_asked`; there is nobody to tell."""

    def others_asked(self) -> bool:
        """See `Lockstep.others_asked`."""
        return False

    def give_up(self, reason: str, *, is_mismatch: bool = False) -> None:
        """See `Lockstep.give_up`."""

    def close(self) -> None:
        """See `Lockstep.close`."""


def run_in_step(
    process: Lockstep,
    task: dict[str, Any] | None,
    make: Callable[[dict[str, Any], Callable[[], bool]], T],
    *,
    media: Media = NO_MEDIA,
    asked: Callable[[], bool] = lambda: False,
) -> T:
    """Runs one job in every process.

    Args:
        process: this one.
        task: of process 0; None in the others, which wait for it.
        make: runs the task; asks, at the same places in all processes, whether to stop, and then
            raises `Cancelled`. Takes pictures and clips from `process.receive_media`.
        media: the pictures and clips that the task names, of process 0.
        asked: whether process 0 was asked to stop.

    Returns:
        What `make` does.

    Raises:
        Cancelled: process 0 was asked to stop.
        WanTpuError: process 0 failed, which stopped this one.
    """
    task = process.begin(task, media)
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
