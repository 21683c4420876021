"""What one server consists of, put together, and what runs beside the requests."""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable

from server.answered import answered
from server.engine.client import EngineClient
from server.engine.failure import Failure
from server.engine.profiles import Profiles
from server.engine.supervisor import patience_of
from server.errors import DO_NOT_RETRY, ApiError, retry_after
from server.files.media import FilesLost, shown
from server.jobs.binding import check_binding
from server.jobs.board import Board
from server.jobs.database import StoreFull
from server.jobs.job import Extended, Job, make_id, variations_of
from server.jobs.opening import open_data, usable
from server.jobs.shelf import files_of
from server.jobs.worker import Worker, working
from server.keys import Keys
from server.metrics import Metrics
from server.settings import Settings
from wan_tpu.media import NO_MEDIA, Media
from wan_tpu.request import VideoRequest

logger = logging.getLogger(__name__)

HOUSEKEEPING_SECONDS = 2.0
DELETED_AT_ONCE = 20
"""Jobs whose files are out of sight at a time, until the database has forgotten them."""

MAX_IDEMPOTENCY_KEY = 255


class Service:
    """The rooms of one server and what routes ask of them together."""

    def __init__(self, settings: Settings):
        """Checks what can be checked before anything starts.

        Raises:
            KeysError: the keys' file cannot be used.
            DataFolderError: the data folder cannot be used, or is not ours.
            StoreError: the database cannot be used, or does not belong to the data folder.
        """
        self.settings = settings
        self.started_at = int(time.time())
        self.keys = None if settings.api_keys_file is None else Keys(settings.api_keys_file)
        self.metrics = Metrics()
        engine = EngineClient(patience_of(settings))
        with contextlib.ExitStack() as opened:
            opened_data = open_data(settings, opened)
            self.folder, self.media, self.uploads, self.store = opened_data
            self.board = Board(
                self.store,
                keep_seconds=settings.expiry_seconds,
                max_attempts=settings.max_attempts,
                timeout_seconds=settings.database_timeout_seconds,
            )
            with usable(settings.data_dir):
                jobs = self.store.load()
                check_binding(self.folder, self.store, self.media, jobs)
                self.board.load(jobs, lambda job: self.media.is_whole(job.id, files_of(job)))
                self._put_in_order()
                self.profiles = Profiles(settings.data_dir, engine, self.media.has_room)
            self._opened = opened.pop_all()
        self.worker = Worker(self.board, self.media, self.uploads, engine, self.metrics, settings)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Works until the block is left."""
        housekeeping = asyncio.create_task(self._keep_house(), name="housekeeping")
        try:
            async with working(self.worker):
                yield
        finally:
            housekeeping.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await housekeeping
            await self.profiles.close()
            await self.board.close()
            self.close()

    def close(self) -> None:
        """Lets others have the database and the folder."""
        self._opened.close()

    def _put_in_order(self) -> None:
        """Compares the files with the database: what belongs to nobody goes to the trash."""
        strangers = self.media.tidy(self.board.known_jobs())
        if strangers:
            logger.warning(
                "%d folders of no known job are in %s now, for %.0f days: %s",
                len(strangers),
                self.settings.data_dir / "trash",
                self.settings.trash_seconds / 86_400,
                shown(strangers),
            )
        unknown = self.uploads.tidy(self.board.shelf.media)
        if unknown:
            logger.warning("%d uploads of no known job are in the trash now", len(unknown))
        damaged = [job.id for job in self.board.completed() if self._damage(job) is not None]
        if damaged:
            logger.warning(
                "%d completed videos are not served, because their files are gone or damaged: %s",
                len(damaged),
                shown(damaged),
            )

    def _damage(self, job: Job) -> str | None:
        """What is wrong with a completed job's files; shown from then on."""
        damage = None
        try:
            self.media.open(job.id, "video", files_of(job))
            if files_of(job) and not self.media.is_whole(job.id, files_of(job)):
                damage = f"a preview of {job.id} is gone or damaged"
        except FilesLost as error:
            damage = str(error)
        self.board.note_damage(job.id, damage)
        return damage

    @property
    def missing(self) -> list[str]:
        """What stands between the service and being ready, as sentences; empty when it is."""
        reasons = list(self.worker.missing)
        if self.keys is not None and self.keys.problem is not None:
            reasons.insert(0, "the API keys cannot be read")
        if self.board.lost is not None:
            reasons.append(self.board.lost)
        elif self.board.trouble is not None:
            reasons.append(f"the database cannot be written: {self.board.trouble}")
        return reasons

    @property
    def fatal(self) -> str | None:
        """Why the server must end at once, and with an error: it does not own its jobs any more."""
        return self.board.lost

    @property
    def retry_seconds(self) -> float:
        """When to come again to a service that is not ready or takes no jobs."""
        return self.worker.retry_seconds

    async def drain(self) -> None:
        """Takes no more jobs and gives the running one its grace."""
        logger.info("draining: no new jobs, up to %g s for the running one", self._grace)
        await self.worker.drain(self._grace)

    def hurry(self) -> None:
        """Ends the running job's grace: it goes back at once."""
        self.worker.hurry()

    def abandon(self) -> None:
        """Has the service end without another write: its jobs belong to another server."""
        self.worker.abandon()

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

        def make(newest: str | None) -> list[Job]:
            before = self.repeated(owner, idempotency_key, request_digest)
            if before is not None:
                return self.board.group_of(before)
            self.check_open(owner, number)
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
            await self._make_place(owner, idempotency_key, number)
            if not media:
                return await self.board.accept_all(make)
            if idempotency_key is None or not self.board.find_idempotent(owner, idempotency_key):
                self._check_share(owner, media)
            return await self.board.to_the_end(self._accept_with(media, make))

    def repeated(self, owner: str, idempotency_key: str | None, request_digest: str) -> Job | None:
        """The job that this very request was given before.

        Raises:
            ApiError: the key came with another request.
        """
        if idempotency_key is None:
            return None
        before = self.board.find_idempotent(owner, idempotency_key)
        if before is None or before.request_digest == request_digest:
            return before
        message = "this Idempotency-Key came with another request before; take a new one"
        param = "Idempotency-Key"
        raise ApiError(409, "idempotency_conflict", message, param=param, headers=DO_NOT_RETRY)

    async def _accept_with(
        self, media: Media, make: Callable[[str | None], list[Job]]
    ) -> list[Job]:
        """Takes jobs whose pictures and clips are on the disk first, and stay as long as they."""
        try:
            with contextlib.ExitStack() as kept:
                await asyncio.to_thread(kept.enter_context, self.uploads.keeping(media))
                return await self.board.accept_all(make)
        finally:
            self.uploads.remove(media, self.board.needs)

    def _check_share(self, owner: str, media: Media) -> None:
        """Refuses pictures and clips for which a key has no bytes left."""
        share = self.settings.kept_bytes_share
        if share == math.inf:
            return
        board = self.board
        sizes = {
            d: self.uploads.size_of(d) for d in board.shelf.media_of(board.shelf.ids_of(owner))
        }
        sizes |= {digest: len(data) for digest, data in media.items()}
        kept = board.kept_of(owner).file_bytes + sum(sizes.values())
        if kept > share:
            message = (
                f"the videos and uploads of this key would take {kept} bytes, and {share:.0f} may "
                "be kept; delete some"
            )
            later = retry_after(self.retry_seconds)
            raise ApiError(429, "quota_exceeded", message, headers=later)

    async def cancel(self, job_id: str) -> Job | None:
        """Cancels a job, at once for clients and within a step on the accelerator."""
        waiting = job_id in self.board.queue.order()
        with answered():
            job = await self.board.cancel(job_id)
        if waiting and job is not None and job.error_code == Failure.CANCELLED:
            self.metrics.jobs.labels(str(Failure.CANCELLED)).inc()  # the worker counts the others
        await self.worker.stop_running(job_id)
        return job

    async def delete(self, job_ids: list[str]) -> None:
        """Forgets jobs, stops the one that runs, removes their files.

        Raises:
            ApiError: the database cannot be written; the jobs and their files are still there.
        """
        for job_id in job_ids:
            await asyncio.to_thread(self.media.set_aside, job_id)
        media = self.board.shelf.media_of(job_ids)
        try:
            with answered():
                await self._delete_rows(job_ids)
        except ApiError:
            for job_id in job_ids:
                await asyncio.to_thread(self.media.put_back, job_id)
            raise
        for job_id in job_ids:
            await self.worker.stop_running(job_id)
            await asyncio.to_thread(self.media.remove, job_id)
        self.uploads.remove(media, self.board.needs)

    async def _delete_rows(self, job_ids: list[str]) -> None:
        """Deletes from the database; where a full disk forbids even that, the files go first.

        Their owner, or their time, has given them up: if this server ends in between, the jobs are
        there without files, and can be deleted again.
        """
        try:
            await self.board.delete(job_ids)
        except StoreFull:
            for job_id in job_ids:
                await asyncio.to_thread(self.media.remove, job_id)
            await self.board.delete(job_ids)

    async def _make_place(self, owner: str, idempotency_key: str | None, number: int) -> None:
        """Forgets the oldest jobs without a video of an owner that has as many as may be kept."""
        too_many = self.board.kept_of(owner).jobs + number - self.settings.finished_share
        if too_many <= 0:
            return
        if idempotency_key is None or self.board.find_idempotent(owner, idempotency_key) is None:
            self.check_open(owner, number)
            await self.delete(self.board.oldest_failed(owner, int(too_many)))

    def check_open(self, owner: str, number: int = 1) -> None:
        """Refuses jobs that cannot be taken now.

        Args:
            owner: who asks.
            number: of jobs, which are taken together or not at all.

        Raises:
            ApiError: the queue is full, the disk is, or the service ends; or there will never be
                room for so many.
        """
        settings, queue = self.settings, self.board.queue
        later = retry_after(self.retry_seconds)
        if self.worker.is_draining:
            raise ApiError(503, "draining", "the service is shutting down", headers=later)
        if not self.media.has_room():
            raise ApiError(503, "disk_full", "the server's disk is nearly full", headers=later)
        most = min(settings.max_queued_jobs, settings.queue_share)
        if number > most:
            message = f"n is {number}, and no more than {most} jobs may wait; ask for fewer"
            raise ApiError(400, "invalid_value", message, param="n")
        asked = "" if number == 1 else f", and n asks for {number}"
        if len(queue) + number > settings.max_queued_jobs:
            message = f"the queue is full: {len(queue)} jobs wait{asked}"
            raise ApiError(429, "queue_full", message, headers=later)
        if queue.count(owner) + number > settings.queue_share:
            which = "which is as many as may" if number == 1 else f"{settings.queue_share} may"
            message = f"{queue.count(owner)} jobs of this key wait, {which}{asked}"
            raise ApiError(429, "queue_full", message, headers=later)
        kept = self.board.kept_of(owner)
        too_many = kept.jobs + number - settings.finished_share
        if too_many > 0 and len(self.board.oldest_failed(owner, int(too_many))) < too_many:
            message = f"{kept.jobs} finished videos of this key are kept, which is as many as may"
            raise ApiError(429, "quota_exceeded", f"{message}; delete some", headers=later)
        if kept.file_bytes >= settings.kept_bytes_share:
            message = (
                f"the videos of this key take {kept.file_bytes} bytes, and "
                f"{settings.kept_bytes_share:.0f} may be kept; delete some"
            )
            raise ApiError(429, "quota_exceeded", message, headers=later)

    async def _keep_house(self) -> None:
        """Looks after the database, removes what has expired, and reads the keys again."""
        while True:
            try:
                await self.board.check()
                self.metrics.database_available.set(self.board.trouble is None)
                if self.board.trouble is None and self.board.lost is None:
                    await self._remove_expired()
                self._read_keys()
            except ApiError as error:
                logger.warning("what has expired stays for now: %s", error.message)
            except Exception:
                logger.exception("housekeeping failed and goes on")
            await asyncio.sleep(HOUSEKEEPING_SECONDS)

    async def _remove_expired(self) -> None:
        expired = self.board.expired()
        for start in range(0, len(expired), DELETED_AT_ONCE):
            await self.delete(expired[start : start + DELETED_AT_ONCE])
        if expired:
            logger.info("removed %d expired jobs", len(expired))
        gone = await asyncio.to_thread(self.media.empty_trash, self.board.now())
        if gone:
            logger.info("removed from the trash: %s", shown(gone))

    def _read_keys(self) -> None:
        if self.keys is not None and self.keys.refresh():
            self.board.wake()  # streams end whose key was taken out
            if self.keys.problem is not None:
                logger.error("no key is taken until this is mended: %s", self.keys.problem)

    @property
    def _grace(self) -> float:
        return self.settings.drain_seconds
