"""The one worker that owns the accelerator: takes jobs off the board, one after the other."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from server.engine.bounds import Why, unless
from server.engine.client import EngineClient
from server.engine.failure import ProcessLost
from server.engine.supervisor import USUAL_RETRY_SECONDS, Supervisor
from server.files.media import Media
from server.files.uploads import Uploads
from server.jobs.attempt import Attempt
from server.jobs.board import Board
from server.jobs.companions import Choice, Gains, choose
from server.jobs.gathered import Gathered
from server.jobs.job import Job, State
from server.jobs.persistence import GaveUpError, Persistence
from server.metrics import Metrics
from server.settings import Settings

logger = logging.getLogger(__name__)

ROOM_CHECK_SECONDS = 2.0
AFTER_FAILURE_SECONDS = 1.0

TIMES_AT_ONE_JOB, FIRST_SKIP_SECONDS, LAST_SKIP_SECONDS = 3, 60.0, 3600.0
"""A job that cannot even be claimed is left aside for a while after so many tries, ever longer."""

REMEMBERED_SECONDS = 120.0
"""How long failures around the engine keep the service from being ready, if none follow."""

END_SECONDS = 60.0
"""For the worker to come to an end by itself once all it waits for was ended. It has bounds
everywhere; this one is for those that were forgotten."""


class Worker:
    """Keeps an engine running and feeds it.

    Attributes:
        has_lost_process: whether the service must end, so that all processes of the slice start
            anew.
    """

    def __init__(
        self,
        board: Board,
        media: Media,
        uploads: Uploads,
        engine: EngineClient,
        metrics: Metrics,
        settings: Settings,
    ):
        self.has_lost_process = False
        self._board = board
        self._media = media
        self._uploads = uploads
        self._engine = engine
        self._metrics = metrics
        self._settings = settings
        self._supervisor = Supervisor(engine, settings, metrics)
        self._persistence = Persistence()
        self._draining, self._hurried = asyncio.Event(), asyncio.Event()
        self._is_abandoned = False
        self._attempts: list[Attempt] = []
        self._measured: tuple[dict[str, Any], Gains] = ({}, Gains([]))
        self._first: tuple[str, float] = ("", 0.0)  # in line, and since when
        self._has_crashed: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._own_failures = 0
        self._last_failure = ""
        self._failed_at = 0.0
        self._claim_failures: dict[str, int] = {}
        self._skipped_until: dict[str, float] = {}

    @property
    def is_draining(self) -> bool:
        """Whether no more jobs are taken."""
        return self._draining.is_set()

    @property
    def missing(self) -> list[str]:
        """What stands between the service and being ready, as sentences; empty when it is."""
        reasons = []
        if self.is_draining:
            reasons.append("the service is shutting down")
        reasons += self._supervisor.missing
        is_recent = time.monotonic() - self._failed_at < REMEMBERED_SECONDS
        if is_recent and self._own_failures >= self._settings.max_failures:
            reasons.append(
                f"the service failed {self._own_failures} times in a row around the engine, the "
                f"latest with {self._last_failure}; its log says more"
            )
        if self._media.trouble is not None:
            reasons.append(self._media.trouble)
        return reasons

    @property
    def retry_seconds(self) -> float:
        """When to come again to a service that is not ready."""
        return self._supervisor.retry_seconds if not self.is_draining else USUAL_RETRY_SECONDS

    def start(self) -> None:
        """Begins to work, beside whoever calls."""
        self._task = asyncio.create_task(self._run(), name="worker")

    async def stop_running(self, job_id: str) -> None:
        """Stops a job that was cancelled or deleted, if it runs: within a step, or by force."""
        for attempt in self._attempts:
            if attempt.job.id == job_id:
                attempt.stop(Why.UNWANTED)

    async def drain(self, grace_seconds: float) -> None:
        """Takes no more jobs; the running one finishes within the grace, or goes back.

        The engine has ended, and nothing is written any more, when this returns.
        """
        self._draining.set()
        for attempt in self._attempts:
            attempt.is_last = True
        if self._task is not None:
            hurried = asyncio.ensure_future(self._hurried.wait())
            await asyncio.wait(
                {self._task, hurried},
                timeout=grace_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            hurried.cancel()
            self._persistence.is_over.set()
            for attempt in self._attempts:
                attempt.stop(Why.ABANDONED if self._is_abandoned else Why.GIVEN_BACK)
            await asyncio.wait({self._task}, timeout=END_SECONDS)
            if not self._task.done():
                logger.error("the worker does not end and is left")
                self._task.cancel()
        await self._engine.stop()

    def hurry(self) -> None:
        """Ends the grace that `drain` gives."""
        self._hurried.set()

    def abandon(self) -> None:
        """The jobs belong to another server now: nothing more is written about them."""
        self._is_abandoned = True
        self._persistence.forbid()
        self.hurry()

    async def close(self) -> None:
        """Ends the engine, and all processes of the slice; the running job goes back."""
        self.hurry()
        await self.drain(0)

    async def _run(self) -> None:
        """Works until it is drained, or a process of the slice is lost."""
        while not self.is_draining and not self.has_lost_process:
            try:
                if await self._unless_draining(self._supervisor.ensure()):
                    jobs = await self._next_jobs()
                    if jobs:
                        await self._make(jobs)
                        self._own_failures = 0
            except ProcessLost:
                self.has_lost_process = True
            except GaveUpError as error:
                logger.error("%s", error)
                await self._unless_draining(asyncio.sleep(AFTER_FAILURE_SECONDS))
            except Exception as error:
                # A fault of ours must not end the worker: nobody else would do the work.
                logger.exception("the worker failed and goes on")
                self._own_failures += 1
                self._last_failure, self._failed_at = type(error).__name__, time.monotonic()
                self._metrics.worker_failures.inc()
                await self._unless_draining(asyncio.sleep(AFTER_FAILURE_SECONDS))

    async def _unless_draining(self, what: Coroutine[Any, Any, None]) -> bool:
        """Does something that draining cuts short; whether it was done."""
        task = await unless(self._draining, what)
        if not task.cancelled():
            task.result()
        return not task.cancelled() and not self.is_draining

    async def _next_jobs(self) -> list[Job]:
        """Waits for a job, claims it and those that are made with it; none when there is another
        reason to look around."""
        changed = self._board.next_change()
        now = time.monotonic()
        waiting = self._board.queue.order()
        order = [job_id for job_id in waiting if self._skipped_until.get(job_id, 0) <= now]
        patience = ROOM_CHECK_SECONDS if waiting else None
        if order and self._media.has_room():
            choice = self._choose(order)
            patience = self._patience_of(choice, now)
            if patience <= 0:
                return await self._claim_all(choice.jobs)
        events = [
            asyncio.ensure_future(what)
            for what in (changed.wait(), self._engine.ended(), self._draining.wait())
        ]
        try:
            await asyncio.wait(events, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for event in events:
                event.cancel()
        if not waiting:
            self._own_failures = 0
        return []

    def _choose(self, order: list[str]) -> Choice:
        """What of the line is made now."""
        settings = self._settings
        found = (self._board.find(job_id) for job_id in order[: settings.batch + 1])
        return choose(
            [job for job in found if job is not None],
            self._gains(),
            most=settings.batch,
            delay_seconds=settings.batch_delay_seconds,
        )

    def _gains(self) -> Gains:
        """What the engine that runs has measured."""
        if self._measured[0] is not self._supervisor.description:
            gains = Gains(self._supervisor.description.get("together", []))
            self._measured = (self._supervisor.description, gains)
            if str(gains):
                logger.info("made together, a step takes %s", gains)
        return self._measured[1]

    def _patience_of(self, choice: Choice, now: float) -> float:
        """How long the first in line waits for others still: never longer than is set, in all."""
        first = choice.jobs[0].id
        if self._first[0] != first:
            self._first = (first, now)
        if not choice.may_wait:
            return 0.0
        return self._first[1] + self._settings.batch_wait_seconds - now

    async def _claim_all(self, chosen: list[Job]) -> list[Job]:
        """Takes jobs; with one that cannot be taken at once those before it begin."""
        first = await self._claim(chosen[0].id, until=self._draining)
        taken = [] if first is None else [first]
        at_once = asyncio.Event()
        at_once.set()
        try:
            for job in chosen[1:] if taken else []:
                companion = await self._claim(job.id, until=at_once)
                taken += [] if companion is None else [companion]
        except Exception as error:  # noqa: BLE001 - `_claim` has noted it; the others can be made
            logger.warning("%d jobs begin without others: %s", len(taken), error)
        return taken

    async def _claim(self, job_id: str, *, until: asyncio.Event) -> Job | None:
        """Takes a job; one that fails again and again is left aside, the others go on."""
        try:
            job = await self._persistence.write(lambda: self._board.claim(job_id), until=until)
        except GaveUpError:
            raise
        except Exception:
            times = self._claim_failures[job_id] = self._claim_failures.get(job_id, 0) + 1
            if times >= TIMES_AT_ONE_JOB:
                longer = 2.0 ** min(times - TIMES_AT_ONE_JOB, 10)
                seconds = min(FIRST_SKIP_SECONDS * longer, LAST_SKIP_SECONDS)
                logger.error("the job is left aside for %g s", seconds, extra={"job": job_id})
                self._skipped_until[job_id] = time.monotonic() + seconds
            raise
        self._claim_failures.pop(job_id, None)
        self._skipped_until.pop(job_id, None)
        return job

    async def _make(self, jobs: list[Job]) -> None:
        """Makes the videos of jobs; however it goes, the next ones can be made."""
        if self.is_draining:
            # The claim was on its way when the end came: as if it had not been.
            for job in jobs:
                await self._persistence.write(lambda job=job: self._board.requeue(job.id))
            return
        jobs = [job for job in jobs if self._is_in_progress(job)]
        if not jobs:
            return  # cancelled or deleted meanwhile
        self._metrics.made_together.observe(len(jobs))
        for job in jobs:
            if job.attempts == 1:
                self._metrics.waiting_seconds.observe(max(0.0, time.time() - job.created_at))
        gathered = Gathered(
            self._engine, [job.id for job in jobs], self._settings.job_timeout_seconds
        )
        attempts = self._attempts = [self._attempt_at(job, gathered) for job in jobs]
        try:
            ended = await asyncio.gather(
                *(attempt.run() for attempt in attempts), return_exceptions=True
            )
        finally:
            self._attempts = []
            await gathered.close()
            for attempt in attempts:
                self._note_end(attempt)
        await self._supervisor.end_suspect()
        errors = [error for error in ended if isinstance(error, BaseException)]
        for error in sorted(errors, key=lambda error: not isinstance(error, ProcessLost)):
            raise error

    def _attempt_at(self, job: Job, gathered: Gathered) -> Attempt:
        return Attempt(
            job,
            board=self._board,
            media=self._media,
            uploads=self._uploads,
            engine=self._engine,
            supervisor=self._supervisor,
            persistence=self._persistence,
            metrics=self._metrics,
            settings=self._settings,
            has_crashed=self._has_crashed,
            gathered=gathered,
        )

    def _is_in_progress(self, job: Job) -> bool:
        now = self._board.find(job.id)
        return now is not None and now.state == State.IN_PROGRESS

    def _note_end(self, attempt: Attempt) -> None:
        """Remembers a job at which the engine crashed, until it has ended."""
        job_id = attempt.job.id
        if attempt.crashed:
            self._has_crashed.add(job_id)
        after = self._board.find(job_id)
        if after is None or after.is_finished:
            self._has_crashed.discard(job_id)


@contextlib.asynccontextmanager
async def working(worker: Worker) -> AsyncIterator[None]:
    """Runs a worker beside the block."""
    worker.start()
    try:
        yield
    finally:
        await worker.close()
