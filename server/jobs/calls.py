"""Calls of the blocking store from the event loop: one at a time, each with an end.

A database that does not answer must not make those who ask wait behind one another: once it is
known to be away everybody is told at once, until `check` has found it again.
"""

import asyncio
import concurrent.futures
import logging
from collections.abc import Callable
from typing import Any

from server.jobs.database import OwnershipLost, StoreFull, StoreUnavailable
from server.jobs.store import Store

logger = logging.getLogger(__name__)

CUT_SECONDS = 1.0
"""For a call to end once its line to the database was cut."""


class StoreCalls:
    """The one thread that calls the store.

    Attributes:
        trouble: why the database takes nothing now; None while it does.
        lost: why the database is not this server's any more; None while it is.
    """

    def __init__(self, store: Store, *, timeout_seconds: float):
        self._store = store
        self._timeout_seconds = timeout_seconds
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="store")
        self._last: asyncio.Future[Any] | None = None
        self._stuck: asyncio.Future[Any] | None = None
        self.trouble: str | None = None
        self.lost: str | None = None

    def require(self) -> None:
        """Raises at once where a call would be in vain.

        Raises:
            StoreUnavailable: the database is known to be away.
            OwnershipLost: it is not this server's any more.
        """
        if self.lost is not None:
            raise OwnershipLost(self.lost)
        if self.trouble is not None:
            raise StoreUnavailable(self.trouble)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a method of the store returns.

        Raises:
            StoreUnavailable: it failed for now, or there was no answer in time; whether a write
                happened is not known then.
            OwnershipLost: the database is not this server's any more.
        """
        if self.lost is not None:
            raise OwnershipLost(self.lost)
        if self._stuck is not None and not self._stuck.done():
            raise StoreUnavailable(f"{self._store.name} does not answer")
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._thread, function, *arguments)
        future.add_done_callback(_look_at_outcome)
        self._last = future
        if not await self._ends(future):
            self._stuck = future
            raise StoreUnavailable(f"{self._store.name} does not answer")
        try:
            return future.result()
        except OwnershipLost as error:
            self.note_lost(str(error))
            raise

    def note(self, error: StoreUnavailable | None) -> None:
        """Remembers that the database is away, or that it is there again.

        A full disk is not remembered: what makes room must be tried.
        """
        if isinstance(error, StoreFull):
            return
        if error is not None and self.trouble is None:
            logger.error("the database cannot be written: %s", error)
        elif error is None and self.trouble is not None:
            logger.info("the database can be written again")
        self.trouble = None if error is None else str(error)

    def note_lost(self, words: str) -> None:
        """Remembers that this server must end."""
        if self.lost is None:
            logger.critical("%s", words)
            self.lost = words

    async def close(self) -> None:
        """Waits for the last call, unless it is one that never ends."""
        has_ended = self._last is None or await self._ends(self._last)
        self._thread.shutdown(wait=has_ended)

    async def _ends(self, future: asyncio.Future[Any]) -> bool:
        """Waits for a call; past its time the line is cut, which ends all but a broken disk."""
        done, _ = await asyncio.wait({future}, timeout=self._timeout_seconds)
        if not done:
            self._store.abandon()
            done, _ = await asyncio.wait({future}, timeout=CUT_SECONDS)
        return bool(done)


def _look_at_outcome(future: asyncio.Future[Any]) -> None:
    """Nobody may be there any more to look at it; what it was, the database is asked anew."""
    if not future.cancelled():
        future.exception()
