"""The jobs of one slice: on the board of this process, which has their files and their engine."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence

from server.engine.client import EngineClient
from server.engine.failure import Failure
from server.engine.profiles import Profiles
from server.engine.supervisor import patience_of
from server.files.media import FilesLost, shown
from server.jobs.binding import check_binding
from server.jobs.board import Board
from server.jobs.database import StoreError, StoreFull
from server.jobs.job import Job
from server.jobs.opening import open_data, usable
from server.jobs.seam import MakeJobs, Queue, Standing
from server.jobs.shelf import files_of
from server.jobs.worker import Worker, working
from server.metrics import Metrics
from server.settings import Settings
from wan_tpu.media import NO_MEDIA, Media

logger = logging.getLogger(__name__)

HOUSEKEEPING_SECONDS = 2.0
DELETED_AT_ONCE = 20
"""Jobs whose files are out of sight at a time, until the database has forgotten them."""


class LocalJobs:
    """See `server.jobs.seam.Jobs`.

    Attributes:
        board: what is served.
        media: the files of finished videos.
        uploads: those that jobs are made from.
        worker: that makes them.
        profiles: of its engine.
    """

    def __init__(self, settings: Settings, metrics: Metrics):
        """Checks what can be checked before anything starts.

        Raises:
            DataFolderError: the data folder cannot be used, or is not ours.
            StoreError: the database cannot be used, or does not belong to the data folder.
        """
        self._settings = settings
        self._metrics = metrics
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
        self.worker = Worker(self.board, self.media, self.uploads, engine, metrics, settings)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """See `Jobs.running`."""
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

    @property
    def missing(self) -> list[str]:
        """See `Jobs.missing`."""
        reasons = list(self.worker.missing)
        if self.board.lost is not None:
            reasons.append(self.board.lost)
        elif self.board.trouble is not None:
            reasons.append(f"the database cannot be written: {self.board.trouble}")
        return reasons

    @property
    def is_available(self) -> bool:
        """See `Jobs.is_available`."""
        return self.board.trouble is None

    @property
    def fatal(self) -> str | None:
        """Why the server must end at once, and with an error: it does not own its jobs any more."""
        return self.board.lost

    @property
    def has_lost_process(self) -> bool:
        """See `Jobs.has_lost_process`."""
        return self.worker.has_lost_process

    @property
    def is_draining(self) -> bool:
        """See `Jobs.is_draining`."""
        return self.worker.is_draining

    @property
    def retry_seconds(self) -> float:
        """See `Jobs.retry_seconds`."""
        return self.worker.retry_seconds

    async def drain(self) -> None:
        """Takes no more jobs and gives the running one its grace."""
        grace = self._settings.drain_seconds
        logger.info("draining: no new jobs, up to %g s for the running one", grace)
        await self.worker.drain(grace)

    def hurry(self) -> None:
        """Ends the running job's grace: it goes back at once."""
        self.worker.hurry()

    def abandon(self) -> None:
        """Has the service end without another write: its jobs belong to another server."""
        self.worker.abandon()

    def has_room(self) -> bool:
        """See `Jobs.has_room`."""
        return self.media.has_room()

    async def find(self, job_id: str) -> Job | None:
        """See `Jobs.find`."""
        return self.board.find(job_id)

    async def find_owned(self, owner: str, job_id: str) -> Job | None:
        """See `Jobs.find_owned`."""
        return self.board.find_owned(owner, job_id)

    async def find_idempotent(self, owner: str, key: str) -> Job | None:
        """See `Jobs.find_idempotent`."""
        return self.board.find_idempotent(owner, key)

    async def group_of(self, first: Job) -> list[Job]:
        """See `Jobs.group_of`."""
        return self.board.group_of(first)

    async def page(
        self, owner: str, *, after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[Job], bool]:
        """See `Jobs.page`."""
        ids, has_more = self.board.page(owner, after=after, limit=limit, newest_first=newest_first)
        return [self.board.shelf.entries[job_id].job for job_id in ids], has_more

    def bodies(self, jobs: Sequence[Job]) -> list[bytes]:
        """See `Jobs.bodies`."""
        return [self.board.body(job.id) for job in jobs]

    def next_change(self) -> asyncio.Event:
        """See `Jobs.next_change`."""
        return self.board.next_change()

    def wake(self) -> None:
        """See `Jobs.wake`."""
        self.board.wake()

    async def queue(self) -> Queue:
        """See `Jobs.queue`."""
        waiting = [self.board.find(job_id) for job_id in self.board.queue.order()]
        oldest_at = min((job.created_at for job in waiting if job is not None), default=None)
        return Queue(length=len(waiting), oldest_at=oldest_at)

    async def standing(self, owner: str, media: Media = NO_MEDIA) -> Standing:
        """See `Jobs.standing`."""
        return self._standing(owner, media)

    async def accept(
        self, owner: str, idempotency_key: str | None, media: Media, make: MakeJobs
    ) -> list[Job]:
        """See `Jobs.accept`."""

        def make_jobs(newest: str | None) -> list[Job]:
            key = idempotency_key
            first = None if key is None else self.board.find_idempotent(owner, key)
            before = [] if first is None else self.board.group_of(first)
            return list(make(before, self._standing(owner, media), newest))

        if not media:
            return await self.board.accept_all(make_jobs)
        return await self.board.operations.to_the_end(self._accept_with(media, make_jobs))

    async def cancel(self, job_id: str) -> Job | None:
        """Cancels a job, at once for clients and within a step on the accelerator."""
        waiting = job_id in self.board.queue.order()
        job = await self.board.cancel(job_id)
        if waiting and job is not None and job.error_code == Failure.CANCELLED:
            # The worker counts the others.
            self._metrics.jobs.labels(str(Failure.CANCELLED)).inc()
        await self.worker.stop_running(job_id)
        return job

    async def delete(self, job_ids: Sequence[str]) -> None:
        """Forgets jobs, stops the one that runs, removes their files.

        Raises:
            StoreUnavailable: the database cannot be written; the jobs and their files are still
                there.
        """
        for job_id in job_ids:
            await asyncio.to_thread(self.media.set_aside, job_id)
        media = self.board.shelf.media_of(job_ids)
        try:
            await self._delete_rows(list(job_ids))
        except StoreError:
            for job_id in job_ids:
                await asyncio.to_thread(self.media.put_back, job_id)
            raise
        for job_id in job_ids:
            await self.worker.stop_running(job_id)
            await asyncio.to_thread(self.media.remove, job_id)
        self.uploads.remove(media, self.board.needs)

    async def make_place(self, owner: str, number: int) -> None:
        """See `Jobs.make_place`."""
        await self.delete(self.board.oldest_failed(owner, number))

    def _standing(self, owner: str, media: Media) -> Standing:
        board, queue = self.board, self.board.queue
        digests = board.shelf.media_of(board.shelf.ids_of(owner)) if media else set()
        sizes = {digest: self.uploads.size_of(digest) for digest in digests}
        sizes |= {digest: len(data) for digest, data in media.items()}
        kept = board.kept_of(owner)
        return Standing(
            waiting=len(queue),
            waiting_of_owner=queue.count(owner),
            kept=kept,
            upload_bytes=sum(sizes.values()),
        )

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

    def _put_in_order(self) -> None:
        """Compares the files with the database: what belongs to nobody goes to the trash."""
        strangers = self.media.tidy(self.board.known_jobs())
        if strangers:
            logger.warning(
                "%d folders of no known job are in %s now, for %.0f days: %s",
                len(strangers),
                self._settings.data_dir / "trash",
                self._settings.trash_seconds / 86_400,
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

    async def _keep_house(self) -> None:
        """Looks after the database, and removes what has expired."""
        while True:
            try:
                await self.board.check()
                if self.board.trouble is None and self.board.lost is None:
                    await self._remove_expired()
            except StoreError as error:
                logger.warning("what has expired stays for now: %s", error)
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
