"""The one worker that owns the accelerator: takes jobs off the board, one after the other."""

import asyncio
import contextlib
import errno
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from server.engine.client import EngineClient, EngineFailure, ProcessLost
from server.engine.failure import Failure
from server.engine.messages import Progress
from server.files.media import Media
from server.jobs.board import Board
from server.jobs.database import StoreUnavailable
from server.jobs.job import Job, State
from server.metrics import Metrics
from server.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

ENGINE_FAILURES = {Failure.OUT_OF_MEMORY, Failure.ENGINE_ERROR, Failure.ENGINE_CRASHED}
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 300.0
LAST_WRITE_RETRY_SECONDS = 4.0
ROOM_CHECK_SECONDS = 2.0


class Worker:
    """Keeps an engine running and feeds it."""

    def __init__(
        self,
        board: Board,
        media: Media,
        engine: EngineClient,
        metrics: Metrics,
        settings: Settings,
    ):
        self._board = board
        self._media = media
        self._engine = engine
        self._metrics = metrics
        self._settings = settings
        self._loading: str | None = "starting the engine"
        self._failures = 0
        self._last_failure = ""
        self._generation: asyncio.Task[None] | None = None
        self._running: str | None = None
        self.is_draining = False
        self.has_lost_process = False
        """Whether the service must end, so that all processes of the slice start anew."""

    @property
    def missing(self) -> list[str]:
        """What stands between the service and being ready, as sentences; empty when it is."""
        reasons = []
        if self.is_draining:
            reasons.append("the service is shutting down")
        if self._loading is not None:
            reasons.append(f"the engine is not ready: {self._loading}")
        if self._failures >= self._settings.max_failures:
            reasons.append(
                f"the last {self._failures} videos failed, the latest with: {self._last_failure}"
            )
        if self._media.trouble is not None:
            reasons.append(self._media.trouble)
        return reasons

    async def run(self) -> None:
        """Works until it is drained, or a process of the slice is lost."""
        while not self.is_draining and not self.has_lost_process:
            try:
                await self._ensure_engine()
                job = await self._next_job()
                if job is not None:
                    await self._make(job)
            except ProcessLost:
                self.has_lost_process = True
            except Exception:
                # A fault of ours must not end the worker: nobody else would do the work.
                logger.exception("the worker failed and goes on")
                await asyncio.sleep(FIRST_RETRY_SECONDS)

    async def stop_running(self, job_id: str) -> None:
        """Has the engine stop a job that was cancelled or deleted, if it is at that one."""
        if self._running == job_id:
            await self._engine.cancel(job_id)

    async def drain(self, grace_seconds: float) -> None:
        """Takes no more jobs; the running one finishes within the grace, or goes back."""
        self.is_draining = True
        generation = self._generation
        if generation is None:
            return
        await asyncio.wait({generation}, timeout=grace_seconds)
        job_id = self._running
        if not generation.done() and job_id is not None:
            logger.info("the running job goes back to the queue", extra={"job": job_id})
            await self._persist(lambda: self._board.requeue(job_id))
            await self._engine.stop()
            await generation

    async def close(self) -> None:
        """Ends the engine, and all processes of the slice."""
        await self._engine.stop()

    async def _ensure_engine(self) -> None:
        """Starts the engine where there is none, and again, ever more rarely, when it cannot."""
        delay = FIRST_RETRY_SECONDS
        while not self._engine.is_alive:
            self._loading = "starting the engine"
            started = time.monotonic()
            try:
                async with asyncio.timeout(self._settings.start_timeout_seconds):
                    description = await self._engine.start(self._note_loading)
            except (EngineFailure, TimeoutError) as error:
                await self._engine.kill()
                self._loading = str(error) or "it did not start in time"
                logger.error("the engine cannot start: %s", self._loading)
                await asyncio.sleep(delay)
                delay = min(2 * delay, LAST_RETRY_SECONDS)
            else:
                self._loading = None
                words = ", ".join(f"{name} {value}" for name, value in description.items())
                seconds = time.monotonic() - started
                logger.info("the engine is ready: %s", words, extra={"seconds": seconds})

    def _note_loading(self, what: str) -> None:
        self._loading = what
        logger.debug("the engine is %s", what)

    async def _next_job(self) -> Job | None:
        """Waits for a job and claims it; None when there is another reason to look around."""
        changed = self._board.next_change()
        order = self._board.queue.order()
        if order and self._media.has_room():
            return await self._persist(lambda: self._board.claim(order[0]))
        waiting = [
            asyncio.ensure_future(changed.wait()),
            asyncio.ensure_future(self._engine.ended()),
        ]
        try:
            await asyncio.wait(
                waiting,
                timeout=ROOM_CHECK_SECONDS if order else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            for task in waiting:
                task.cancel()
        return None

    async def _make(self, job: Job) -> None:
        """Makes a job's video; however it goes, the next one can be made."""
        extra = {"job": job.id, "attempt": job.attempts}
        logger.info("job started", extra=extra)
        started = time.monotonic()
        self._running = job.id
        self._generation = asyncio.create_task(self._generate(job))
        try:
            await self._watch(job, self._generation)
        except Exception as error:  # the boundary of jobs: the next one must be able to run
            logger.exception("the job could not be handled", extra=extra)
            await self._note_failure(job, _own_failure(error))
            if job.id not in self._board.completed_ids():
                await asyncio.to_thread(self._media.remove, job.id)
        finally:
            self._generation = self._running = None
            await asyncio.to_thread(self._media.discard, job.id)
        now = self._board.find(job.id)
        outcome = "deleted" if now is None else str(now.error_code or now.state)
        self._metrics.jobs.labels(outcome).inc()
        logger.info(
            "job ended", extra={**extra, "code": outcome, "seconds": time.monotonic() - started}
        )

    async def _watch(self, job: Job, generation: asyncio.Task[None]) -> None:
        """Waits for the end; past the timeout asks for it, and past the grace makes it."""
        settings = self._settings
        done, _ = await asyncio.wait({generation}, timeout=settings.job_timeout_seconds)
        if not done:
            message = f"the video took longer than {settings.job_timeout_seconds:g} seconds"
            await self._persist(lambda: self._board.fail(job.id, Failure.TIMEOUT, message))
            await self._engine.cancel(job.id)
            done, _ = await asyncio.wait({generation}, timeout=settings.stop_grace_seconds)
        if not done:
            logger.error("the engine does not stop and is killed", extra={"job": job.id})
            await self._engine.kill()
        await generation

    async def _generate(self, job: Job) -> None:
        """Has the engine make the video and notes what became of it."""
        try:
            folder = await asyncio.to_thread(self._media.begin, job.id)
            metadata = await self._engine.generate(
                job.id, job.request, folder, lambda progress: self._note_progress(job.id, progress)
            )
            published = await self._publish(job.id, metadata)
        except ProcessLost:
            await self._put_back(job)
            self.has_lost_process = True
        except EngineFailure as failure:
            if failure.code == Failure.ENGINE_CRASHED and self._settings.group.num_processes > 1:
                await self._put_back(job)  # what kills the engine may be the loss of another one
            else:
                await self._note_failure(job, failure)
        else:
            if published:
                self._note_success(metadata)

    async def _put_back(self, job: Job) -> None:
        """Has a job made again that ended with a process of the slice; so often, and no more."""
        if await self._persist(lambda: self._board.put_back(job.id)):
            logger.error("the job is put back: a process was lost", extra={"job": job.id})

    async def _publish(self, job_id: str, metadata: dict[str, Any]) -> bool:
        """Puts the files in their place, then says so; takes them back if nobody wants them."""
        job = self._board.find(job_id)
        if job is None or job.state != State.IN_PROGRESS:
            return False
        kept = {name: value for name, value in metadata.items() if name not in ("request", "model")}
        kept["files"] = await asyncio.to_thread(self._media.measure, job_id)
        if not await self._persist(lambda: self._board.note_made(job_id, kept)):
            return False
        await asyncio.to_thread(self._media.publish, job_id)
        if await self._persist(lambda: self._board.complete(job_id, kept)):
            return True
        await asyncio.to_thread(self._media.remove, job_id)
        return False

    def _note_success(self, metadata: dict[str, Any]) -> None:
        self._failures = 0
        for stage, seconds in metadata.get("seconds", {}).items():
            self._metrics.stage_seconds.labels(stage.partition(" ")[0]).observe(seconds)

    async def _note_failure(self, job: Job, failure: EngineFailure) -> None:
        """Fails the job, unless it was stopped on purpose, and keeps count."""
        code, message = failure.code, str(failure)
        if not await self._persist(lambda: self._board.fail(job.id, code, message)):
            return
        logger.error("job failed: %s", message, extra={"job": job.id, "code": code})
        if code in ENGINE_FAILURES:
            self._failures += 1
            self._last_failure = message
        if self._failures >= self._settings.max_failures:
            await self._engine.kill()  # a new process is the best cure there is

    def _note_progress(self, job_id: str, progress: Progress) -> None:
        if progress.stage == "denoise" and progress.done:
            self._metrics.steps.inc()
        self._board.report(job_id, progress)

    async def _persist(self, write: Callable[[], Awaitable[T]]) -> T:
        """Repeats a write to the database until it succeeds: the outcome must not be lost."""
        delay = FIRST_RETRY_SECONDS
        while True:
            try:
                return await write()
            except StoreUnavailable as error:
                logger.warning("the database cannot be written, trying again: %s", error)
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_WRITE_RETRY_SECONDS)


def _own_failure(error: Exception) -> EngineFailure:
    """What a job is told whose video was lost around the engine, not in it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EngineFailure(Failure.DISK_FULL, "the server's disk is full")
    words = f"the server failed with {type(error).__name__}; its log says more"
    return EngineFailure(Failure.ENGINE_ERROR, words)


@contextlib.asynccontextmanager
async def working(worker: Worker):
    """Runs a worker beside the block."""
    task = asyncio.create_task(worker.run(), name="worker")
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await worker.close()
