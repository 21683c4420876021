"""The jobs of a fleet, as each server of its API has them: see `server.jobs.seam.Jobs`.

The table in PostgreSQL says what there is; Temporal sees that it is made; the bucket has the files.
A server keeps nothing that another would miss.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from server.engine.failure import Failure
from server.files.job_files import JobFiles
from server.fleet.binding import bind
from server.fleet.calls import FleetCalls, Reads
from server.fleet.mirror import Mirror
from server.fleet.record import Recorder
from server.fleet.slices import Slices
from server.fleet.store import FleetStore, Gone
from server.fleet.sweep import Sweep
from server.fleet.upkeep import Upkeep, Waiting
from server.fleet.workflows import Workflows
from server.jobs.database import StoreRefused, StoreUnavailable
from server.jobs.job import Job, State
from server.jobs.operations import Operations
from server.jobs.seam import MakeJobs, Queue, Standing
from server.jobs.video_object import encode_place, encode_video, video_object
from server.metrics import Metrics
from server.settings import Settings
from wan_tpu.media import Media
from wan_tpu.storage.bucket import Bucket, BucketError, check_bucket, open_bucket

logger = logging.getLogger(__name__)

T = TypeVar("T")

CHECK_SECONDS = 1.0
RETRY_SECONDS = 5.0
"""When to come again to a server that has no database, or ends."""


class FleetJobs:
    """See `server.jobs.seam.Jobs`.

    Attributes:
        bucket: of the fleet.
        files: of its jobs.
        slices: of the fleet, and the models that they serve.
    """

    fatal = None
    has_lost_process = False

    def __init__(self, settings: Settings, metrics: Metrics):
        """Opens the database and the bucket; Temporal is looked for once it runs.

        Raises:
            StoreError: the database cannot be used.
            BucketError: the bucket's URL names none.
        """
        assert settings.files is not None
        self._settings, self._metrics = settings, metrics
        self.bucket: Bucket = open_bucket(settings.files)
        self.files = JobFiles(self.bucket)
        self._store = FleetStore(
            settings.database, timeout_seconds=settings.database_timeout_seconds
        )
        self._calls = FleetCalls(self._store, timeout_seconds=settings.database_timeout_seconds)
        self._reads = Reads(self._calls, self._store)
        upkeep = Upkeep(self._store)
        self._recorder = Recorder(
            self._calls,
            upkeep,
            self.files,
            metrics,
            keep_seconds=settings.expiry_seconds,
        )
        self.slices = Slices(self.bucket, model_seconds=settings.model_seconds)
        self.workflows = Workflows(settings, self._recorder.record)
        self.mirror = Mirror(self._calls, upkeep, self.workflows, count_slices=self.slices.count)
        self.sweep = Sweep(
            settings,
            store=self._store,
            calls=self._calls,
            upkeep=upkeep,
            workflows=self.workflows,
            mirror=self.mirror,
            files=self.files,
        )
        self._operations = Operations()
        self._is_draining = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """See `Jobs.running`.

        Raises:
            StoreError: the database and the bucket do not belong together.
            BucketError: the bucket cannot be used.
        """
        try:
            await check_bucket(self.bucket, redirect=self._settings.files_redirect)
            await bind(self._store, self._calls, self.bucket, self.files)
            checking = asyncio.create_task(self._keep_house(), name="housekeeping")
            try:
                async with (
                    self.workflows.running(),
                    self.slices.running(),
                    self.mirror.running(),
                    self.sweep.running(),
                ):
                    yield
            finally:
                checking.cancel()
                await asyncio.gather(checking, return_exceptions=True)
                await self._operations.close()
        finally:
            await self._calls.close()
            self.close()

    def close(self) -> None:
        """See `Jobs.close`."""
        self._store.close()

    @property
    def missing(self) -> list[str]:
        """See `Jobs.missing`. Only what keeps this server from its requests: while Temporal or the
        bucket is away all servers are, and jobs are to be taken all the same."""
        return _named("the database cannot be used", self._calls.trouble)

    @property
    def waits_for(self) -> list[str]:
        """What keeps jobs that are taken from being made, as sentences."""
        return [
            *_named("Temporal cannot be used", self.workflows.trouble),
            *_named("the bucket cannot be read", self.slices.trouble),
        ]

    @property
    def is_available(self) -> bool:
        """See `Jobs.is_available`."""
        return self._calls.trouble is None

    @property
    def is_draining(self) -> bool:
        """See `Jobs.is_draining`."""
        return self._is_draining

    @property
    def retry_seconds(self) -> float:
        """See `Jobs.retry_seconds`."""
        return RETRY_SECONDS

    async def drain(self) -> None:
        """Takes no more jobs; other servers write the notes of workflows."""
        self._is_draining = True
        logger.info("draining: no new jobs")
        await self.workflows.drain()

    def hurry(self) -> None:
        """See `Jobs.hurry`: there is nothing that is waited for."""

    def abandon(self) -> None:
        """See `Jobs.abandon`: no server owns the jobs."""

    def has_room(self) -> bool:
        """See `Jobs.has_room`: a bucket has."""
        return True

    async def find(self, job_id: str) -> Job | None:
        """See `Jobs.find`."""
        return self.mirror.find(job_id) or await self._reads.find(job_id)

    async def find_owned(self, owner: str, job_id: str) -> Job | None:
        """See `Jobs.find_owned`."""
        job = await self._reads.find(job_id)
        return job if job is not None and job.owner == owner else None

    async def find_idempotent(self, owner: str, key: str) -> Job | None:
        """See `Jobs.find_idempotent`."""
        return next(iter(await self._calls.call(self._store.find_idempotent, owner, key)), None)

    async def group_of(self, first: Job) -> list[Job]:
        """See `Jobs.group_of`."""
        return await self._calls.call(self._store.group_of, first)

    async def page(
        self, owner: str, *, after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[Job], bool]:
        """See `Jobs.page`."""
        return await self._calls.call(
            lambda: self._store.page(owner, after=after, limit=limit, newest_first=newest_first)
        )

    def bodies(self, jobs: Sequence[Job]) -> list[bytes]:
        """See `Jobs.bodies`; places in the queue and progress are up to a second old."""
        return [self._body(job) for job in jobs]

    def next_change(self) -> asyncio.Event:
        """See `Jobs.next_change`; up to a second late."""
        return self.mirror.next_change()

    def wake(self) -> None:
        """See `Jobs.wake`."""
        self.mirror.wake()

    async def queue(self) -> Queue:
        """See `Jobs.queue`; up to a second old."""
        return self.mirror.queue()

    async def standing(self, owner: str) -> Standing:
        """See `Jobs.standing`."""
        return await self._calls.call(self._store.standing, owner)

    async def accept(
        self, owner: str, idempotency_key: str | None, media: Media, make: MakeJobs
    ) -> list[Job]:
        """See `Jobs.accept`; `make` is asked in another thread."""
        try:
            return await self._operations.to_the_end(
                self._accept(owner, idempotency_key, media, make)
            )
        except StoreRefused:
            # A server of one slice, or a hand, gave the key to another job in the same moment.
            return await self._operations.to_the_end(
                self._accept(owner, idempotency_key, media, make)
            )

    async def cancel(self, job_id: str) -> Job | None:
        """See `Jobs.cancel`."""
        return await self._operations.to_the_end(self._cancel(job_id))

    async def delete(self, job_ids: Sequence[str]) -> None:
        """See `Jobs.delete`; at once for clients, and in Temporal and the bucket soon."""
        await self._operations.to_the_end(
            self._forget(self._calls.call(self._store.delete, job_ids))
        )

    async def make_place(self, owner: str, number: int) -> None:
        """See `Jobs.make_place`."""
        deleting = self._calls.call(self._store.delete_failed, owner, number)
        await self._operations.to_the_end(self._forget(deleting))

    def _body(self, job: Job) -> bytes:
        running = self.mirror.where(job) if job.state == State.IN_PROGRESS else None
        body = encode_video(video_object(job, running=running))
        if job.state != State.QUEUED:
            return body
        return encode_place(body, *self.mirror.place(job))

    async def _accept(self, owner: str, key: str | None, media: Media, make: MakeJobs) -> list[Job]:
        if media:
            return await self._accept_with(owner, key, media, make)
        accepted = await self._insert(owner, key, make, upload_bytes=0)
        return accepted[0]

    async def _accept_with(
        self, owner: str, key: str | None, media: Media, make: MakeJobs
    ) -> list[Job]:
        """Takes jobs whose pictures and clips are in the bucket first, under their ids."""
        size = sum(len(data) for data in media.values())

        def with_media(before: Sequence[Job], standing: Standing, newest: str | None) -> list[Job]:
            more = dataclasses.replace(standing, upload_bytes=standing.upload_bytes + size)
            return list(make(before, more, newest))

        asked = await self._calls.call(self._store.ask, owner, key)
        first = with_media(*asked)
        if asked[0]:
            return first
        ids = [job.id for job in first]

        def again(before: Sequence[Job], standing: Standing, newest: str | None) -> list[Job]:
            made = with_media(before, standing, newest)
            return made if before else first

        are_new = False
        try:
            await self.files.put_uploads(ids, media)
            jobs, are_new = await self._insert(owner, key, again, upload_bytes=size)
        finally:
            if not are_new and not self.sweep.doubtful.intersection(ids):
                for job_id in ids:
                    with contextlib.suppress(BucketError):  # else as files of no known job
                        await self.files.remove(job_id)
        return jobs

    async def _insert(
        self, owner: str, key: str | None, make: MakeJobs, *, upload_bytes: int
    ) -> tuple[list[Job], bool]:
        """Writes jobs down and has their workflows started; whether they are new."""
        made: list[Job] = []

        def remember(before: Sequence[Job], standing: Standing, newest: str | None) -> list[Job]:
            made[:] = make(before, standing, newest)
            return made

        try:
            accepted = await self._calls.call(
                lambda: self._store.accept(owner, key, remember, upload_bytes=upload_bytes)
            )
            jobs, are_new = accepted.jobs, accepted.are_new
        except StoreUnavailable:
            if not made or not await self._were_accepted(made):
                raise
            jobs, are_new = made, True
        if are_new:
            self.mirror.add(jobs)
            self.sweep.soon(self.sweep.start(jobs))
        return jobs, are_new

    async def _were_accepted(self, jobs: Sequence[Job]) -> bool:
        """What became of an acceptance that gave no answer."""
        ids = [job.id for job in jobs]
        try:
            return await self._calls.call(self._store.were_accepted, ids)
        except StoreUnavailable:
            # Nobody is told that they are accepted; if they are there later, they go.
            self.sweep.doubtful.update(ids)
            raise

    async def _cancel(self, job_id: str) -> Job | None:
        job, started = await self._calls.call(
            self._store.cancel, job_id, self._settings.expiry_seconds
        )
        if started is not None:
            self._metrics.jobs.labels(str(Failure.CANCELLED)).inc()
            self.mirror.drop([job_id])
            waiting = Waiting(job_id=job_id, is_certain=started)
            self.sweep.soon(self.sweep.cancel(waiting))
        return job

    async def _forget(self, deleting: Coroutine[Any, Any, list[Gone]]) -> None:
        gone = await deleting
        self._note_deleted(gone)
        self.mirror.drop(each.job_id for each in gone)
        self.sweep.soon(self.sweep.delete_all(gone))

    def _note_deleted(self, gone: Iterable[Gone]) -> None:
        for each in gone:
            if not each.was_finished:
                self._metrics.jobs.labels("deleted").inc()

    async def _keep_house(self) -> None:
        while True:
            try:
                await self._calls.check()
            except Exception:
                logger.exception("housekeeping failed and goes on")
            await asyncio.sleep(CHECK_SECONDS)


def _named(what: str, trouble: str | None) -> list[str]:
    return [] if trouble is None else [f"{what}: {trouble}"]
