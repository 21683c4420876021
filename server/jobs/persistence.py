"""Writes that must not be lost: repeated until they succeed, or until nobody waits any more."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from server.jobs.database import OwnershipLost, StoreUnavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 0.5, 5.0
LAST_WRITE_SECONDS = 5.0
"""For a write that is under way when the server is to end at once."""


class GaveUpError(Exception):
    """What was to be written is not; the database still says what it said before."""


class Persistence:
    """Repeats writes while the database is away.

    Attributes:
        is_over: set when the server ends now: a write under way has its time, none follows it.
    """

    def __init__(self) -> None:
        self.is_over = asyncio.Event()
        self._is_forbidden = False

    def forbid(self) -> None:
        """Nothing is written any more: what would be is another server's now."""
        self._is_forbidden = True
        self.is_over.set()

    async def write(
        self, write: Callable[[], Awaitable[T]], *, until: asyncio.Event | None = None
    ) -> T:
        """What `write` returns, once it succeeds.

        A write under way is never cancelled: whether it took place would not be known.

        Args:
            write: begins the write.
            until: an event after which it is not tried again.

        Raises:
            GaveUpError: it did not succeed before the end.
        """
        delay = FIRST_RETRY_SECONDS
        until = until or self.is_over
        while not self._is_forbidden:
            try:
                return await self._once(write)
            except StoreUnavailable as error:
                logger.warning("the database cannot be written, trying again: %s", error)
            except OwnershipLost as error:
                self.forbid()
                raise GaveUpError(str(error)) from None
            if await _is_set_within(until, delay):
                break
            delay = min(2 * delay, LAST_RETRY_SECONDS)
        raise GaveUpError("the server ends, and the database still says what it said before")

    async def _once(self, write: Callable[[], Awaitable[T]]) -> T:
        """One write; when the server ends now, it is waited for a while longer."""
        writing = asyncio.ensure_future(write())
        over = asyncio.ensure_future(self.is_over.wait())
        try:
            await asyncio.wait({writing, over}, return_when=asyncio.FIRST_COMPLETED)
            if not writing.done():
                await asyncio.wait({writing}, timeout=LAST_WRITE_SECONDS)
        finally:
            over.cancel()
        if not writing.done():
            writing.add_done_callback(_look_at)
            raise GaveUpError("the database did not answer before the server ended")
        return writing.result()


def _look_at(writing: asyncio.Future[T]) -> None:
    """Nobody else hears how an abandoned write ended."""
    if not writing.cancelled() and writing.exception() is not None:
        logger.error("a write ended after the server gave it up: %s", writing.exception())


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait({waiting}, timeout=seconds)
        return event.is_set()
    finally:
        waiting.cancel()
