"""One attempt at a job: the engine makes the video, and what becomes of it is written down.

However it ends, one place writes the outcome. Whoever stops an attempt only says why.
"""

import asyncio
import dataclasses
import logging
import pathlib
import time
from collections.abc import Set
from typing import Any

from server.engine.bounds import Bounds, Verdict, Why, failure_around, timed_out, verdict_of
from server.engine.client import EngineClient
from server.engine.failure import EngineFailure, Failure, ProcessLost
from server.engine.messages import Progress
from server.engine.supervisor import Supervisor
from server.files.media import Media
from server.files.uploads import Uploads
from server.jobs.board import Board
from server.jobs.gathered import Gathered
from server.jobs.job import Job, State
from server.jobs.persistence import GaveUpError, Persistence
from server.metrics import Metrics
from server.settings import Settings

logger = logging.getLogger(__name__)


class Attempt:
    """An attempt at one job that the board says is in progress."""

    def __init__(
        self,
        job: Job,
        *,
        board: Board,
        media: Media,
        uploads: Uploads,
        engine: EngineClient,
        supervisor: Supervisor,
        persistence: Persistence,
        metrics: Metrics,
        settings: Settings,
        has_crashed: Set[str],
        gathered: Gathered,
    ):
        """Begins nothing.

        Args:
            job: as it was claimed.
            gathered: the jobs that are made together with it, itself among them.
            has_crashed: ids of jobs at which the engine has crashed before.
        """
        self.job = job
        self.is_last = False
        """Whether the server is ending, so that no attempt follows this one."""
        self.crashed = False
        """Whether the engine crashed."""
        self._board = board
        self._media = media
        self._uploads = uploads
        self._engine = engine
        self._supervisor = supervisor
        self._persistence = persistence
        self._metrics = metrics
        self._settings = settings
        self._has_crashed = has_crashed
        self._gathered = gathered
        self._bounds = Bounds(job.id, engine, stop_grace_seconds=settings.stop_grace_seconds)
        self._late: asyncio.Task[None] | None = None

    def stop(self, why: Why) -> None:
        """Has it end soon; a reason that cannot wait takes the place of one that can."""
        self._bounds.stop(why)

    async def run(self) -> None:
        """Makes the video, or stops, and writes down what became of it.

        Raises:
            ProcessLost: another process of the slice was lost; the job is put back.
            GaveUpError: the database could not be written before the server ended.
        """
        extra = {"job": self.job.id, "attempt": self.job.attempts, "together": self._gathered.count}
        logger.info("job started", extra=extra)
        started = time.monotonic()
        work = asyncio.create_task(self._work(), name=self.job.id)
        try:
            await self._watch(work)
            await self._conclude(work)
            if self._late is not None:
                await self._late
        finally:
            if not work.done():
                work.cancel()
            await asyncio.to_thread(self._media.discard, self.job.id)
            self._note_end(time.monotonic() - started)

    async def _work(self) -> dict[str, Any]:
        """Has the engine make the video; returns what it says about it."""
        try:
            folder: pathlib.Path = await asyncio.to_thread(self._media.begin, self.job.id)
            extended = self.job.extended
            return await self._gathered.generate(
                self.job.id,
                self.job.request,
                folder,
                self._note_progress,
                uploads=self._uploads.folder,
                extended=None if extended is None else dataclasses.asdict(extended),
            )
        finally:
            self._gathered.leave(self.job.id)

    async def _watch(self, work: asyncio.Task[dict[str, Any]]) -> None:
        """Waits for the engine; makes it stop when it is asked to, or takes too long."""

        def note_lateness() -> None:
            self._late = asyncio.create_task(self._fail(timed_out(self._gathered.timeout_seconds)))

        await self._bounds.watch(
            work,
            self._gathered.timeout_seconds,
            on_timeout=note_lateness,
            give_back=self._give_back,
        )

    async def _conclude(self, work: asyncio.Task[dict[str, Any]]) -> None:
        """Writes the outcome down."""
        if self._bounds.why == Why.ABANDONED:
            work.exception()
            return
        try:
            metadata = work.result()
            if await self._publish(metadata):
                self._note_success(metadata)
        except ProcessLost as lost:
            await self._conclude_failure(lost)
            raise
        except EngineFailure as failure:
            await self._conclude_failure(failure)
        except GaveUpError:
            raise
        except Exception as error:  # the boundary of jobs: the next one must be able to run
            logger.exception("the job could not be handled", extra=self._extra)
            await self._fail(failure_around(error))
            if self.job.id not in self._board.completed_ids():
                await asyncio.to_thread(self._media.remove, self.job.id)

    async def _conclude_failure(self, error: EngineFailure | ProcessLost) -> None:
        verdict = verdict_of(
            error,
            is_stopped=self._bounds.why is not None,
            is_last=self.is_last,
            num_processes=self._settings.group.num_processes,
        )
        is_crash = isinstance(error, EngineFailure) and error.code == Failure.ENGINE_CRASHED
        self.crashed = is_crash and verdict != Verdict.STOPPED
        match verdict:
            case Verdict.STOPPED:
                return
            case Verdict.GIVEN_BACK:
                await self._give_back()
            case Verdict.LOST:
                await self._put_back("a process was lost")
            case Verdict.CRASHED | Verdict.FAILED:
                assert isinstance(error, EngineFailure)
                if not self.crashed or self._gathered.is_first_to_crash():
                    self._supervisor.note_failure(self.job.id, error)
                if self.crashed and self._may_be_innocent:
                    await self._put_back(str(error))
                else:
                    await self._fail(error)

    @property
    def _may_be_innocent(self) -> bool:
        """Whether the engine may have crashed for another reason than this job."""
        is_first = self.job.id not in self._has_crashed
        return is_first and self.job.attempts < self._settings.max_attempts

    async def _publish(self, metadata: dict[str, Any]) -> bool:
        """Puts the files in their place, then says so; takes them back if nobody wants them."""
        job_id = self.job.id
        job = self._board.find(job_id)
        if job is None or job.state != State.IN_PROGRESS:
            return False
        kept = {name: value for name, value in metadata.items() if name not in ("request", "model")}
        kept["files"] = await asyncio.to_thread(self._media.measure, job_id)
        if not await self._persistence.write(lambda: self._board.note_made(job_id, kept)):
            return False
        await asyncio.to_thread(self._media.publish, job_id)
        if await self._persistence.write(lambda: self._board.complete(job_id, kept)):
            return True
        await asyncio.to_thread(self._media.remove, job_id)
        return False

    async def _give_back(self) -> None:
        """Puts the job back as if it had not been started."""
        if await self._persistence.write(lambda: self._board.requeue(self.job.id)):
            logger.info("the running job goes back to the queue", extra=self._extra)

    async def _put_back(self, reason: str) -> None:
        """Has the job made again; so often, and no more."""
        if await self._persistence.write(lambda: self._board.put_back(self.job.id)):
            logger.error("the job is put back: %s", reason, extra=self._extra)

    async def _fail(self, failure: EngineFailure) -> None:
        """Fails the job, unless it has ended in another way by now."""
        code, message = failure.code, str(failure)
        if await self._persistence.write(lambda: self._board.fail(self.job.id, code, message)):
            logger.error("job failed: %s", message, extra={**self._extra, "code": code})

    def _note_progress(self, progress: Progress) -> None:
        if progress.stage == "denoise" and progress.done:
            self._metrics.steps.inc()
        self._board.report(self.job.id, progress)

    def _note_success(self, metadata: dict[str, Any]) -> None:
        self._supervisor.note_success()
        for stage, seconds in metadata.get("seconds", {}).items():
            self._metrics.stage_seconds.labels(stage.partition(" ")[0]).observe(seconds)

    def _note_end(self, seconds: float) -> None:
        now = self._board.find(self.job.id)
        outcome = "deleted" if now is None else str(now.error_code or now.state)
        if now is None or now.is_finished:
            self._metrics.jobs.labels(outcome).inc()
        logger.info("job ended", extra={**self._extra, "code": outcome, "seconds": seconds})

    @property
    def _extra(self) -> dict[str, Any]:
        return {"job": self.job.id}
