"""Calls of the blocking store from the event loop: several at a time, each with an end."""

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from server.fleet.store import FleetStore
from server.jobs.database import StoreUnavailable
from server.jobs.job import Job

logger = logging.getLogger(__name__)

T = TypeVar("T")

THREADS = 8
"""Calls at a time; SQLAlchemy's pool has 15 connections, so that none waits for one."""

APART_SECONDS = 0.01
"""Between the beginnings of two queries for jobs by id; polls that come meanwhile share one."""

CUT_SECONDS = 1.0
"""For a call to end once its line to the database was cut."""


class FleetCalls:
    """The threads that call the store.

    Attributes:
        trouble: why the database takes nothing now; None while it does.
    """

    def __init__(self, store: FleetStore, *, timeout_seconds: float):
        self._store = store
        self._timeout_seconds = timeout_seconds
        self._threads = concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="store")
        self.trouble: str | None = None

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """What a method of the store returns.

        Raises:
            StoreUnavailable: it failed for now, or there was no answer in time; whether a write
                happened is not known then.
        """
        if self.trouble is not None:  # nobody waits behind others for a database that is away
            raise StoreUnavailable(self.trouble)
        return await self._call(function, *arguments)

    async def check(self) -> None:
        """Finds out how the database is; what is wrong with it is in `trouble` then."""
        try:
            await self._call(self._store.check)
        except StoreUnavailable as error:
            self._note(str(error))
        else:
            self._note(None)

    async def close(self) -> None:
        """Waits for the calls, unless one never ends."""
        closing = asyncio.to_thread(self._threads.shutdown)
        try:
            await asyncio.wait_for(closing, self._timeout_seconds + CUT_SECONDS)
        except TimeoutError:
            logger.warning("a call of the database does not end")

    async def _call(self, function: Callable[..., T], *arguments: Any) -> T:
        thread: list[int] = []

        def run() -> T:
            self._store.begin()
            thread.append(threading.get_ident())
            return function(*arguments)

        work = self._threads.submit(run)
        future = asyncio.wrap_future(work)
        future.add_done_callback(_look_at_outcome)
        done, _ = await asyncio.wait({future}, timeout=self._timeout_seconds)
        if not done and not work.cancel() and thread:
            self._store.cut(thread[0])
            done, _ = await asyncio.wait({future}, timeout=CUT_SECONDS)
        if not done or future.cancelled():
            self._note(f"{self._store.name} does not answer")
            raise StoreUnavailable(f"{self._store.name} does not answer")
        return future.result()

    def _note(self, trouble: str | None) -> None:
        if trouble is not None and self.trouble is None:
            logger.error("the database cannot be used: %s", trouble)
        elif trouble is None and self.trouble is not None:
            logger.info("the database can be used again")
        self.trouble = trouble


class Reads:
    """Jobs by id. Who asks while a query is under way, or hard upon one, is answered by the next
    one, all at once: there are a hundred queries a second at most, however many poll."""

    def __init__(self, calls: FleetCalls, store: FleetStore):
        self._calls, self._store = calls, store
        self._asked: dict[str, list[asyncio.Future[Job | None]]] = {}
        self._reading: asyncio.Task[None] | None = None
        self._next_at = 0.0

    async def find(self, job_id: str) -> Job | None:
        """A job that has not expired, as its row is after this call began.

        Raises:
            StoreUnavailable: it cannot be read now.
        """
        answer: asyncio.Future[Job | None] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(job_id, []).append(answer)
        if self._reading is None:
            self._reading = asyncio.create_task(self._read(), name="reads")
        return await answer

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        while self._asked:
            await asyncio.sleep(self._next_at - loop.time())
            self._next_at = loop.time() + APART_SECONDS
            asked, self._asked = self._asked, {}
            try:
                found = await self._calls.call(self._store.find, list(asked))
            except Exception as error:  # noqa: BLE001 - whoever asked is told
                for answer in _open(asked):
                    answer.set_exception(error)
                continue
            for job_id, answers in asked.items():
                for answer in _open({job_id: answers}):
                    answer.set_result(found.get(job_id))
        self._reading = None


def _open(asked: dict[str, list[asyncio.Future[Job | None]]]) -> list[asyncio.Future[Job | None]]:
    """Those who still wait: a client may have gone."""
    return [answer for answers in asked.values() for answer in answers if not answer.done()]


def _look_at_outcome(future: asyncio.Future[Any]) -> None:
    """Nobody may be there any more to look at it; what it was, the database is asked anew."""
    if not future.cancelled():
        future.exception()
