"""What several stores must agree on in the end: the table, Temporal and the bucket.

Whoever accepts, cancels or deletes a job carries that out in Temporal and in the bucket at once, if
they are there. What was left over, by a server that died or a store that was away, any server's
sweep carries out. Everything here may be done twice, by two servers at a time.
"""

import asyncio
import contextlib
import dataclasses
import logging
import random
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any

from server.engine.failure import Failure
from server.files.job_files import JobFiles
from server.fleet.calls import FleetCalls
from server.fleet.messages import Note, Order
from server.fleet.mirror import Mirror
from server.fleet.store import FleetStore, Gone
from server.fleet.upkeep import Upkeep, Waiting
from server.fleet.workflows import Look, TemporalAway, Workflows
from server.jobs.database import StoreUnavailable
from server.jobs.job import Job, State
from server.jobs.tables import cancellations, deletions
from server.settings import Settings
from wan_tpu.storage.bucket import BucketError

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 2.0
AGE_SECONDS = 5.0
"""Of a note that the server that wrote it has not carried out by itself."""

SETTLE_SECONDS = 30.0
"""After which no start can be under way any more of a workflow that was not there."""

LAST_SECONDS = 5.0
"""At the end of a server, for what it has begun to carry out."""

EXPIRED_AT_ONCE = 100
LOOKED_AT = 4
"""Waiting jobs of which a sweep finds out whether Temporal knows them."""

ORPHANS_SECONDS = 600.0
"""Between two looks at all that the bucket has."""

UNKNOWN_SECONDS = 60.0
"""For an acceptance, whose pictures and clips are in the bucket before the job has a row."""


class Sweep:
    """Carries out what was written down."""

    def __init__(
        self,
        settings: Settings,
        *,
        store: FleetStore,
        calls: FleetCalls,
        upkeep: Upkeep,
        workflows: Workflows,
        mirror: Mirror,
        files: JobFiles,
    ):
        """Does nothing yet."""
        self._settings = settings
        self._store, self._calls, self._upkeep = store, calls, upkeep
        self._workflows, self._mirror, self._files = workflows, mirror, files
        self._unstarted: set[str] = set()  # as the last sweep saw them
        self._looked_at = ""
        self._tasks: set[asyncio.Task[Any]] = set()
        self.doubtful: set[str] = set()
        """Jobs that may have rows, though their client was told that they were not taken."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sweeps until the block is left; then what was begun has a moment to end."""
        tasks = [
            asyncio.create_task(self._repeat(self.sweep, SWEEP_SECONDS), name="sweep"),
            asyncio.create_task(self._repeat(self.orphans, self._orphans_seconds), name="orphans"),
        ]
        try:
            yield
        finally:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=LAST_SECONDS)
            for task in (*tasks, *self._tasks):
                task.cancel()
            await asyncio.gather(*tasks, *self._tasks, return_exceptions=True)

    def soon(self, work: Coroutine[Any, Any, None]) -> None:
        """Carries something out beside the request that wrote it down."""
        task = asyncio.create_task(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def start(self, jobs: Sequence[Job]) -> None:
        """Starts the workflows of jobs.

        Raises:
            TemporalAway: some may not be started.
            StoreUnavailable: they are started and will be once more, which changes nothing.
        """
        outcomes = await asyncio.gather(
            *(self._workflows.start(self._order(job)) for job in jobs), return_exceptions=True
        )
        started = [job.id for job, outcome in zip(jobs, outcomes, strict=True) if outcome is None]
        if started:
            unwanted = await self._calls.call(self._upkeep.note_started, started)
            if unwanted:  # cancelled or deleted meanwhile
                await self._end(age_seconds=0.0)
        _raise_first(outcomes)

    async def cancel(self, waiting: Waiting) -> None:
        """Cancels the workflow of a cancelled job.

        Raises:
            TemporalAway, StoreUnavailable: the note stays.
        """
        if await self._workflows.cancel(waiting.job_id) or waiting.is_certain:
            await self._calls.call(self._upkeep.ended, cancellations, waiting.job_id)

    async def delete(self, waiting: Waiting) -> None:
        """Ends the workflow of a deleted job, and deletes it there and its files in the bucket.

        Raises:
            TemporalAway, BucketError, StoreUnavailable: the note stays.
        """
        is_known = await self._workflows.forget(waiting.job_id)
        await self._files.remove(waiting.job_id)
        if is_known or waiting.is_certain:
            await self._calls.call(self._upkeep.ended, deletions, waiting.job_id)

    async def delete_all(self, gone: Iterable[Gone]) -> None:
        """The same for jobs that were deleted just now."""
        outcomes = await asyncio.gather(
            *(
                self.delete(Waiting(job_id=each.job_id, is_certain=each.was_started))
                for each in gone
            ),
            return_exceptions=True,
        )
        _raise_first(outcomes)

    async def sweep(self) -> None:
        """Does once what is left over.

        Raises:
            StoreUnavailable: the table cannot be read or written.
        """
        await self._forget_doubtful()
        expired = await self._calls.call(self._store.delete_expired, EXPIRED_AT_ONCE)
        if expired:
            logger.info("%d jobs have expired", len(expired))
            self._mirror.drop(each.job_id for each in expired)
            self.soon(self.delete_all(expired))
        waiting = await self._calls.call(self._upkeep.not_started)
        again = [job for job in waiting if job.id in self._unstarted]
        self._unstarted = {job.id for job in waiting}
        if again and self._workflows.trouble is None:
            logger.info("%d workflows that were not started are", len(again))
            await _quietly(self.start(again))
        await self._end(age_seconds=AGE_SECONDS)
        await self._mend()

    async def orphans(self) -> None:
        """Removes files of jobs that nobody knows any more, and of starts that came to nothing.

        What belongs to no known job stays for as long as the trash of a data folder does: another
        database may know it.

        Raises:
            BucketError, StoreUnavailable: later, then.
        """
        there = await self._files.jobs_there()
        counts = await self._calls.call(self._upkeep.starts, sorted(there))
        least = max(self._settings.trash_seconds, UNKNOWN_SECONDS)
        for job_id, found in there.items():
            if job_id not in counts:
                if time.time() - found.modified >= least:
                    logger.warning("files of no known job are removed", extra={"job": job_id})
                    await self._files.remove(job_id)
                continue
            unwanted = set() if counts[job_id] == -1 else found.starts - {counts[job_id]}
            for start in unwanted:
                logger.info("files of a start that came to nothing go", extra={"job": job_id})
                await self._files.remove_start(job_id, start)

    async def _end(self, *, age_seconds: float) -> None:
        """Carries out what was cancelled or deleted, and not seen to its end."""
        for table, carry_out in ((cancellations, self.cancel), (deletions, self.delete)):
            left = await self._calls.call(
                lambda table=table: self._upkeep.to_end(
                    table, age_seconds=age_seconds, settle_seconds=SETTLE_SECONDS
                )
            )
            await asyncio.gather(*(_quietly(carry_out(each)) for each in left))

    async def _mend(self) -> None:
        """Puts right what Temporal says of jobs that it should be at."""
        waiting = self._mirror.waiting()
        turn = [job_id for job_id in waiting if job_id > self._looked_at][:LOOKED_AT]
        self._looked_at = turn[-1] if turn else ""
        odd, self._mirror.odd = self._mirror.odd, {}
        for job_id in turn:
            if job_id not in self._unstarted:
                with contextlib.suppress(TemporalAway):
                    odd[job_id] = await self._workflows.look(job_id)
        for job_id, look in odd.items():
            if look is None:
                logger.warning("Temporal has lost the job", extra={"job": job_id})
                await self._calls.call(self._upkeep.forget_start, job_id)
            elif look.ended is not None:
                await self._fail(job_id, look)

    async def _fail(self, job_id: str, look: Look) -> None:
        """Ends a job whose workflow somebody ended, in Temporal and without a word to us."""
        rows = await self._calls.call(self._upkeep.rows, [job_id])
        if not rows or rows[0].is_finished:
            return
        words = f"the job was ended in Temporal: {look.ended}"
        told = Note(
            id=job_id,
            state=str(State.FAILED),
            attempts=rows[0].attempts,
            code=str(Failure.INTERRUPTED),
            message=words,
        )
        logger.warning("%s", words, extra={"job": job_id})
        await self._calls.call(self._upkeep.record, told, self._settings.expiry_seconds)

    async def _forget_doubtful(self) -> None:
        if self.doubtful:
            doubtful = set(self.doubtful)
            gone = await self._calls.call(self._store.delete, sorted(doubtful))
            self.doubtful -= doubtful
            self.soon(self.delete_all(gone))

    def _order(self, job: Job) -> Order:
        return Order(
            id=job.id,
            owner=job.owner,
            model=job.model,
            request=dataclasses.asdict(job.request),
            extended=None if job.extended is None else dataclasses.asdict(job.extended),
            max_attempts=self._settings.max_attempts,
            job_seconds=self._settings.job_timeout_seconds,
            heartbeat_seconds=self._settings.fleet_heartbeat_seconds,
        )

    @property
    def _orphans_seconds(self) -> float:
        return min(ORPHANS_SECONDS, max(self._settings.trash_seconds, SWEEP_SECONDS))

    async def _repeat(self, work: Any, seconds: float) -> None:
        while True:
            # Servers that were started together must not all come together.
            await asyncio.sleep(seconds * random.uniform(0.75, 1.25))
            await _quietly(work())


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    """Does something that is done again later if it fails."""
    try:
        await work
    except (StoreUnavailable, TemporalAway) as error:
        # That the database or Temporal is away is said once where that is found out.
        logger.debug("left for later: %s", error)
    except BucketError as error:
        logger.warning("left for later: %s", error)
    except Exception:
        logger.exception("left for later")


def _raise_first(outcomes: Iterable[object]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
