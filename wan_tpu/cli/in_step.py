"""The processes of a slice around a command that makes one thing and ends."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from wan_tpu.cli.interruptible import GRACE_SECONDS, Interruptible
from wan_tpu.cli.progress import say
from wan_tpu.errors import MismatchError, WanTpuError
from wan_tpu.media import NO_MEDIA, Media
from wan_tpu.multihost.follower import Follower
from wan_tpu.multihost.group import ProcessGroup
from wan_tpu.multihost.join import meet
from wan_tpu.multihost.lockstep import EXIT_LOST, Alone, Lockstep, run_in_step

T = TypeVar("T")


@contextlib.contextmanager
def in_step(group: ProcessGroup, running: Interruptible) -> Iterator[Lockstep]:
    """Finds the other processes, and tells them when the block fails in this one.

    Args:
        group: this process, and the others; one alone meets nobody.
        running: what the block runs in; ends this process when another one is lost, or process 0
            stops in the middle of the job.
    """
    process: Lockstep = Alone()

    def know(found: Lockstep) -> None:
        nonlocal process
        process = found
        running.before_interrupt(
            lambda: process.give_up("it was interrupted"),
            grace_seconds=GRACE_SECONDS if group.leads else 0.0,  # only process 0 can stop a job
        )

    def stop() -> None:
        if isinstance(process, Follower) and process.is_in_job:
            running.end(EXIT_LOST, "process 0 ended in the middle of the job")

    try:
        yield meet(
            group,
            on_lost=lambda message: running.end(EXIT_LOST, message),
            on_stop=stop,
            on_process=know,
            on_waiting=say,
        )
    except BaseException as error:
        kind = "" if isinstance(error, WanTpuError) else f"{type(error).__name__}: "
        process.give_up(f"{kind}{error}", is_mismatch=isinstance(error, MismatchError))
        raise


def make_once(
    process: Lockstep,
    task: dict[str, Any] | None,
    make: Callable[[dict[str, Any], Callable[[], bool]], T],
    *,
    media: Media = NO_MEDIA,
    asked: Callable[[], bool],
) -> T:
    """The one job that all processes make; then they end. Arguments as of `run_in_step`."""
    try:
        return run_in_step(process, task, make, media=media, asked=asked)
    finally:
        process.close()
