"""The bounds of a job's work at the engine: how long it may take, how others stop it, what a
failure of it means. Whose jobs they are, and where outcomes are written, is not known here."""

import asyncio
import enum
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from server.engine.client import EngineClient
from server.engine.failure import EngineFailure, Failure, ProcessLost
from wan_tpu.storage.disk import is_disk_full

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Why(enum.Enum):
    """Why work is stopped before its end."""

    TIMEOUT = "it takes too long"
    UNWANTED = "it was cancelled or deleted"
    GIVEN_BACK = "the server ends"
    ABANDONED = "the server does not own its jobs any more"


class Verdict(enum.Enum):
    """What the end of work without a video means for its job."""

    STOPPED = "whoever stopped it says what becomes of the job"
    GIVEN_BACK = "it goes back as if it had not been started"
    LOST = "it is made again, and the attempt counts"
    CRASHED = "the engine ended at it, perhaps for another reason"
    FAILED = "there will be no video"


class Bounds:
    """The bounds of work that has begun or is about to.

    Attributes:
        why: it is stopped; None while nobody has.
        stopped: set from then on.
    """

    def __init__(self, job_id: str, engine: EngineClient, *, stop_grace_seconds: float):
        self.why: Why | None = None
        self.stopped = asyncio.Event()
        self._job_id = job_id
        self._engine = engine
        self._stop_grace_seconds = stop_grace_seconds
        self._hurried = asyncio.Event()

    def stop(self, why: Why) -> None:
        """Has the work end soon; a reason that cannot wait takes the place of one that can."""
        cannot_wait = why in (Why.GIVEN_BACK, Why.ABANDONED)
        if self.why is None or cannot_wait:
            self.why = why
        self.stopped.set()
        if cannot_wait:
            self._hurried.set()

    async def watch(
        self,
        work: asyncio.Task[Any],
        timeout_seconds: float,
        *,
        on_timeout: Callable[[], None],
        give_back: Callable[[], Awaitable[None]],
    ) -> None:
        """Waits for the engine's work; makes it stop when it is asked to, or takes too long.

        Args:
            work: which is done when this returns.
            timeout_seconds: that it may take.
            on_timeout: called if it takes longer.
            give_back: gives the job back where the server ends; the engine ends after it. What it
                raises ends this, and the engine is the caller's to end.
        """
        if await _done(work, self.stopped, timeout_seconds):
            return
        if self.why is None:
            self.why = Why.TIMEOUT
            on_timeout()
        if not self._hurried.is_set():
            await self._engine.cancel(self._job_id)
            if await _done(work, self._hurried, self._stop_grace_seconds):
                return
        if self.why == Why.GIVEN_BACK:
            # First, for what may come from the engine now is no outcome any more.
            await give_back()
            await self._engine.stop()
        else:
            logger.error("the engine does not stop and is killed", extra={"job": self._job_id})
            await self._engine.kill()
        await asyncio.wait({work})


def verdict_of(
    error: EngineFailure | ProcessLost, *, is_stopped: bool, is_last: bool, num_processes: int
) -> Verdict:
    """What an end without a video means.

    Args:
        error: that the engine ended the work with.
        is_stopped: whether somebody has stopped it.
        is_last: whether the server is ending: whoever ends it may end its engine first.
        num_processes: of the slice; the loss of one may be what the engine ended of.
    """
    if isinstance(error, ProcessLost):
        return Verdict.GIVEN_BACK if is_last else Verdict.LOST
    if is_stopped:
        return Verdict.STOPPED
    if error.code != Failure.ENGINE_CRASHED:
        return Verdict.FAILED
    if is_last:
        return Verdict.GIVEN_BACK
    return Verdict.LOST if num_processes > 1 else Verdict.CRASHED


def failure_around(error: Exception) -> EngineFailure:
    """What a job is told whose video was lost around the engine, not in it."""
    if is_disk_full(error):
        return EngineFailure(Failure.DISK_FULL, "the server's disk is full")
    words = f"the server failed with {type(error).__name__}; its log says more"
    return EngineFailure(Failure.ENGINE_ERROR, words)


def timed_out(seconds: float) -> EngineFailure:
    """What a job is told whose video took too long."""
    return EngineFailure(Failure.TIMEOUT, f"the video took longer than {seconds:g} seconds")


async def unless(event: asyncio.Event, what: Awaitable[T]) -> asyncio.Future[T]:
    """Does something that an event cuts short; it is done when this returns, or cancelled."""
    doing = asyncio.ensure_future(what)
    happening = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({doing, happening}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        happening.cancel()
        if not doing.done():
            doing.cancel()
            await asyncio.wait({doing})
    return doing


async def _done(work: asyncio.Task[Any], or_else: asyncio.Event, seconds: float) -> bool:
    """Waits for work, an event or a time, whichever comes first; whether the work is done."""
    event = asyncio.ensure_future(or_else.wait())
    try:
        await asyncio.wait({work, event}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return work.done()
    finally:
        event.cancel()
