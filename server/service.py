"""What one server consists of, put together, and what runs beside the requests."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

from server.engine.client import EngineClient
from server.engine.failure import Failure
from server.errors import DO_NOT_RETRY, ApiError, retry_after
from server.files.media import Media
from server.jobs.board import Board
from server.jobs.job import Job, make_id
from server.jobs.store import Store
from server.jobs.worker import Worker, working
from server.keys import Keys
from server.metrics import Metrics
from server.settings import Settings
from wan_tpu.request import VideoRequest

logger = logging.getLogger(__name__)

HOUSEKEEPING_SECONDS = 2.0
RETRY_SECONDS = 30.0
"""When to come again to a server that takes no jobs now."""

MAX_IDEMPOTENCY_KEY = 255


class Service:
    """The rooms of one server and what routes ask of them together."""

    def __init__(self, settings: Settings):
        """Checks what can be checked before anything starts.

        Raises:
            KeysError: the keys' file cannot be used.
            StoreError: the database cannot be used.
        """
        self.settings = settings
        self.started_at = int(time.time())
        self.keys = None if settings.api_keys_file is None else Keys(settings.api_keys_file)
        self.store = Store(settings.database, settings.data_dir)
        self.media = Media(settings.data_dir, min_free_bytes=settings.min_free_bytes)
        self.metrics = Metrics()
        self.board = Board(
            self.store,
            keep_seconds=settings.expiry_seconds,
            max_attempts=settings.max_attempts,
        )
        self.worker = Worker(self.board, self.media, EngineClient(), self.metrics, settings)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Reads what survived, cleans up, and works until the block is left."""
        await self.board.load()
        orphans = await asyncio.to_thread(self.media.remove_orphans, self.board.completed_ids())
        if orphans:
            logger.info("removed %d folders without a finished job", len(orphans))
        housekeeping = asyncio.create_task(self._keep_house(), name="housekeeping")
        try:
            async with working(self.worker):
                yield
        finally:
            housekeeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await housekeeping
            self.board.close()
            self.store.close()

    @property
    def missing(self) -> list[str]:
        """What stands between the service and being ready, as sentences; empty when it is."""
        unreadable = self.keys is not None and self.keys.problem is not None
        return [*(["the API keys cannot be read"] if unreadable else []), *self.worker.missing]

    @property
    def retry_seconds(self) -> float:
        """When to come again to a service that is not ready or takes no jobs."""
        return RETRY_SECONDS

    async def drain(self) -> None:
        """Takes no more jobs and gives the running one its grace."""
        logger.info("draining: no new jobs, up to %g s for the running one", self._grace)
        await self.worker.drain(self._grace)

    async def accept(
        self,
        owner: str,
        request: VideoRequest,
        *,
        model: str,
        request_digest: str,
        idempotency_key: str | None,
    ) -> Job:
        """Takes a job.

        Args:
            owner: name of the key that asks.
            request: complete and checked.
            model: as clients call it.
            request_digest: of what the client sent, the same for the same fields.
            idempotency_key: the client's.

        Raises:
            ApiError: the queue is full, or no work is taken now.
        """
        if idempotency_key is not None and not 0 < len(idempotency_key) <= MAX_IDEMPOTENCY_KEY:
            message = f"Idempotency-Key has 1 to {MAX_IDEMPOTENCY_KEY} characters"
            raise ApiError(400, "invalid_value", message, param="Idempotency-Key")

        def make(newest: str | None) -> Job:
            if idempotency_key is not None:
                before = self.board.find_idempotent(owner, idempotency_key)
                if before is not None:
                    return _same_request(before, request_digest)
            self.check_open(owner)
            return Job(
                id=make_id(newest),
                owner=owner,
                model=model,
                request=request,
                created_at=time.time(),
                idempotency_key=idempotency_key,
                request_digest=request_digest,
            )

        return await self.board.accept(make)

    async def cancel(self, job_id: str) -> Job | None:
        """Cancels a job, at once for clients and within a step on the accelerator."""
        waiting = job_id in self.board.queue.order()
        job = await self.board.cancel(job_id)
        if waiting and job is not None and job.error_code == Failure.CANCELLED:
            self.metrics.jobs.labels(str(Failure.CANCELLED)).inc()  # the worker counts the others
        await self.worker.stop_running(job_id)
        return job

    async def delete(self, job_ids: list[str]) -> None:
        """Forgets jobs, stops the one that runs, removes their files."""
        await self.board.delete(job_ids)
        for job_id in job_ids:
            await self.worker.stop_running(job_id)
            await asyncio.to_thread(self.media.remove, job_id)

    def check_open(self, owner: str) -> None:
        """Refuses a job that cannot be taken now.

        Raises:
            ApiError: the queue is full, the disk is, or the service ends.
        """
        settings, queue = self.settings, self.board.queue
        later = retry_after(self.retry_seconds)
        if self.worker.is_draining:
            raise ApiError(503, "draining", "the service is shutting down", headers=later)
        if not self.media.has_room():
            raise ApiError(503, "disk_full", "the server's disk is nearly full", headers=later)
        if len(queue) >= settings.max_queued_jobs:
            message = f"the queue is full: {len(queue)} jobs wait"
            raise ApiError(429, "queue_full", message, headers=later)
        if queue.count(owner) >= settings.max_queued_jobs_per_key:
            message = f"{queue.count(owner)} jobs of this key wait, which is as many as may"
            raise ApiError(429, "queue_full", message, headers=later)

    async def _keep_house(self) -> None:
        """Removes what has expired, and reads the keys again."""
        while True:
            try:
                expired = self.board.expired()
                if expired:
                    await self.delete(expired)
                    logger.info("removed %d expired jobs", len(expired))
                self._read_keys()
            except Exception:
                logger.exception("housekeeping failed and goes on")
            await asyncio.sleep(HOUSEKEEPING_SECONDS)

    def _read_keys(self) -> None:
        if self.keys is not None and self.keys.refresh():
            self.board.wake()  # streams end whose key was taken out
            if self.keys.problem is not None:
                logger.error("no key is taken until this is mended: %s", self.keys.problem)

    @property
    def _grace(self) -> float:
        return self.settings.drain_seconds


def _same_request(job: Job, request_digest: str) -> Job:
    if job.request_digest != request_digest:
        message = "this Idempotency-Key came with another request before; take a new one"
        raise ApiError(
            409,
            "idempotency_conflict",
            message,
            param="Idempotency-Key",
            headers=DO_NOT_RETRY,
        )
    return job
