"""What one server consists of, put together, and what routes ask of its parts together."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Sequence

from server.answered import answered
from server.engine.profiles import Profiles
from server.errors import DO_NOT_RETRY, ApiError, retry_after
from server.files.seam import Files, LocalFiles
from server.jobs.job import Extended, Job, make_id, variations_of
from server.jobs.local import LocalJobs
from server.jobs.seam import Jobs, Standing
from server.keys import Keys
from server.metrics import Metrics
from server.settings import Settings
from server.slices import Slices
from wan_tpu.media import NO_MEDIA, Media
from wan_tpu.request import VideoRequest

logger = logging.getLogger(__name__)

HOUSEKEEPING_SECONDS = 2.0

MAX_IDEMPOTENCY_KEY = 255


class Service:
    """The parts of one server and what routes ask of them together.

    Attributes:
        jobs: where they are kept, and who sees that they are made.
        files: of finished videos, and of what they are made from.
        keys: that are known here; None where none are asked for.
        profiles: of the engine; None where this server has none.
        slices: of the fleet; None where this server has its own.
    """

    def __init__(
        self,
        settings: Settings,
        jobs: Jobs,
        files: Files,
        metrics: Metrics,
        keys: Keys | None,
        profiles: Profiles | None,
        slices: Slices | None = None,
    ):
        """Puts together what was opened; see `open_service`."""
        self.settings = settings
        self.started_at = int(time.time())
        self.keys = keys
        self.metrics = metrics
        self.jobs = jobs
        self.files = files
        self.profiles = profiles
        self.slices = slices

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Works until the block is left."""
        housekeeping = asyncio.create_task(self._keep_house(), name="keys")
        try:
            async with self.jobs.running():
                yield
        finally:
            housekeeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await housekeeping

    @property
    def missing(self) -> list[str]:
        """What stands between the service and being ready, as sentences; empty when it is."""
        reasons = list(self.jobs.missing)
        if self.keys is not None and self.keys.problem is not None:
            reasons.insert(0, "the API keys cannot be read")
        return reasons

    @property
    def retry_seconds(self) -> float:
        """When to come again to a service that is not ready or takes no jobs."""
        return self.jobs.retry_seconds

    async def accept(
        self,
        owner: str,
        request: VideoRequest,
        *,
        media: Media = NO_MEDIA,
        source_id: str | None = None,
        extended: Extended | None = None,
        model: str,
        request_digest: str,
        idempotency_key: str | None,
        number: int = 1,
    ) -> list[Job]:
        """Takes a job, or several that differ by their seeds: all or none.

        Args:
            owner: name of the key that asks.
            request: complete and checked.
            media: the pictures and clips that it is made from.
            source_id: of the video that it is made from. extended: the clip that it continues.
            model: as clients call it.
            request_digest: of what the client sent, the same for the same fields.
            idempotency_key: the client's.
            number: of jobs, with the seeds of the request and those after it.

        Raises:
            ApiError: the queue is full, the key has as much as it may have, or no work is taken
                now. Then there is no job, now or later.
        """
        if idempotency_key is not None and not 0 < len(idempotency_key) <= MAX_IDEMPOTENCY_KEY:
            message = f"Idempotency-Key has 1 to {MAX_IDEMPOTENCY_KEY} characters"
            raise ApiError(400, "invalid_value", message, param="Idempotency-Key")

        def make(before: Sequence[Job], standing: Standing, newest: str | None) -> list[Job]:
            if before:
                self._check_repeated(before[0], request_digest)
                return list(before)
            self._check_open(standing, number)
            self._check_share(standing, media)
            first = Job(
                id=make_id(newest),
                owner=owner,
                model=model,
                request=request,
                source_id=source_id,
                extended=extended,
                created_at=time.time(),
                idempotency_key=idempotency_key,
                request_digest=request_digest,
            )
            return [first, *variations_of(first, number)]

        with answered():
            if await self.repeated(owner, idempotency_key, request_digest) is None:
                await self._make_place(owner, number)
            return await self.jobs.accept(owner, idempotency_key, media, make)

    async def repeated(
        self, owner: str, idempotency_key: str | None, request_digest: str
    ) -> Job | None:
        """The job that this very request was given before.

        Raises:
            ApiError: the key came with another request.
        """
        if idempotency_key is None:
            return None
        before = await self.jobs.find_idempotent(owner, idempotency_key)
        if before is not None:
            self._check_repeated(before, request_digest)
        return before

    def _check_repeated(self, before: Job, request_digest: str) -> None:
        if before.request_digest == request_digest:
            return
        message = "this Idempotency-Key came with another request before; take a new one"
        param = "Idempotency-Key"
        raise ApiError(409, "idempotency_conflict", message, param=param, headers=DO_NOT_RETRY)

    def _check_share(self, standing: Standing, media: Media) -> None:
        """Refuses pictures and clips for which a key has no bytes left."""
        share = self.settings.kept_bytes_share
        kept = standing.kept.file_bytes + standing.upload_bytes
        if media and kept > share:
            message = (
                f"the videos and uploads of this key would take {kept} bytes, and {share:.0f} may "
                "be kept; delete some"
            )
            later = retry_after(self.retry_seconds)
            raise ApiError(429, "quota_exceeded", message, headers=later)

    async def cancel(self, job_id: str) -> Job | None:
        """Cancels a job, at once for clients and within a step on the accelerator."""
        with answered():
            return await self.jobs.cancel(job_id)

    async def delete(self, job_ids: Sequence[str]) -> None:
        """Forgets jobs, stops those that run, removes their files.

        Raises:
            ApiError: the database cannot be written; the jobs and their files are still there.
        """
        with answered():
            await self.jobs.delete(job_ids)

    async def _make_place(self, owner: str, number: int) -> None:
        """Forgets the oldest jobs without a video of an owner that has as many as may be kept."""
        if self.settings.finished_share == math.inf:
            return
        standing = await self.jobs.standing(owner)
        too_many = standing.kept.jobs + number - self.settings.finished_share
        if too_many > 0:
            self._check_open(standing, number)
            await self.jobs.make_place(owner, int(too_many))

    async def check_open(self, owner: str, number: int = 1) -> None:
        """Refuses jobs that cannot be taken now.

        Args:
            owner: who asks.
            number: of jobs, which are taken together or not at all.

        Raises:
            ApiError: the queue is full, the disk is, or the service ends; or there will never be
                room for so many.
        """
        self._check_takes()
        with answered():
            self._check_open(await self.jobs.standing(owner), number)

    def _check_takes(self) -> None:
        later = retry_after(self.retry_seconds)
        if self.jobs.is_draining:
            raise ApiError(503, "draining", "the service is shutting down", headers=later)
        if not self.jobs.has_room():
            raise ApiError(503, "disk_full", "the server's disk is nearly full", headers=later)

    def _check_open(self, standing: Standing, number: int) -> None:
        """See `check_open`; while nothing changes."""
        self._check_takes()
        settings = self.settings
        later = retry_after(self.retry_seconds)
        most = min(settings.max_queued_jobs, settings.queue_share)
        if number > most:
            message = f"n is {number}, and no more than {most} jobs may wait; ask for fewer"
            raise ApiError(400, "invalid_value", message, param="n")
        asked = "" if number == 1 else f", and n asks for {number}"
        if standing.waiting + number > settings.max_queued_jobs:
            message = f"the queue is full: {standing.waiting} jobs wait{asked}"
            raise ApiError(429, "queue_full", message, headers=later)
        if standing.waiting_of_owner + number > settings.queue_share:
            which = "which is as many as may" if number == 1 else f"{settings.queue_share} may"
            message = f"{standing.waiting_of_owner} jobs of this key wait, {which}{asked}"
            raise ApiError(429, "queue_full", message, headers=later)
        kept = standing.kept
        too_many = kept.jobs + number - settings.finished_share
        if too_many > 0 and kept.failed < too_many:
            message = f"{kept.jobs} finished videos of this key are kept, which is as many as may"
            raise ApiError(429, "quota_exceeded", f"{message}; delete some", headers=later)
        if kept.file_bytes >= settings.kept_bytes_share:
            message = (
                f"the videos of this key take {kept.file_bytes} bytes, and "
                f"{settings.kept_bytes_share:.0f} may be kept; delete some"
            )
            raise ApiError(429, "quota_exceeded", message, headers=later)

    async def _keep_house(self) -> None:
        """Reads the keys again and again, and tells the meters how the database is."""
        while True:
            try:
                self.metrics.database_available.set(self.jobs.is_available)
                self._read_keys()
            except Exception:
                logger.exception("housekeeping failed and goes on")
            await asyncio.sleep(HOUSEKEEPING_SECONDS)

    def _read_keys(self) -> None:
        if self.keys is not None and self.keys.refresh():
            self.jobs.wake()  # streams end whose key was taken out
            if self.keys.problem is not None:
                logger.error("no key is taken until this is mended: %s", self.keys.problem)


def open_service(settings: Settings) -> Service:
    """Opens what a server of one slice needs, or one of a fleet's API.

    Raises:
        KeysError: the keys' file cannot be used.
        DataFolderError: the data folder cannot be used, or is not ours.
        StoreError: the database cannot be used, or does not belong to the files.
        BucketError: the bucket cannot be used.
    """
    keys = None if settings.api_keys_file is None else Keys(settings.api_keys_file)
    metrics = Metrics()
    if settings.role == "api":
        from server.fleet.jobs import FleetJobs  # packages that one slice does without

        fleet = FleetJobs(settings, metrics)
        return Service(settings, fleet, fleet.files, metrics, keys, None, fleet.slices)
    jobs = LocalJobs(settings, metrics)
    files = LocalFiles(jobs.media, jobs.uploads)
    return Service(settings, jobs, files, metrics, keys, jobs.profiles)
