"""All jobs in memory: what is served. Every change is in the database before it is here.

One process owns the jobs, so reads need no database at all and go on while it is away. A write
whose outcome is not known is looked up before anybody is told of it; a row that has vanished, or
that the database refuses, costs its own job alone.
"""

import asyncio
import collections
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from server.engine.failure import Failure
from server.engine.messages import Progress
from server.files.media import KnownJobs
from server.jobs.calls import StoreCalls
from server.jobs.clock import ExpiryClock
from server.jobs.database import OwnershipLost, StoreRefused, StoreUnavailable
from server.jobs.estimate import Durations, work_of
from server.jobs.fair_queue import FairQueue
from server.jobs.forecast import Forecast
from server.jobs.job import Job, State
from server.jobs.operations import Operations
from server.jobs.shelf import Bodies, Entry, Kept, Shelf, files_of
from server.jobs.store import Store
from server.jobs.video_object import encode_place, encode_video, video_object

logger = logging.getLogger(__name__)

T = TypeVar("T")

REMEMBERED_DELETIONS = 10_000
"""Jobs that would come back with an older copy of the database, and are deleted from it again."""


class Board:
    """The jobs of one server."""

    def __init__(
        self,
        store: Store,
        *,
        keep_seconds: float | None,
        max_attempts: int,
        timeout_seconds: float,
    ):
        self._store = store
        self._calls = StoreCalls(store, timeout_seconds=timeout_seconds)
        self._keep_seconds = keep_seconds
        self._max_attempts = max_attempts
        self._shelf = self.shelf = Shelf()
        self._bodies = Bodies()
        self._clock = ExpiryClock()
        self._writing = asyncio.Lock()
        self.operations = Operations()
        self._doubtful: dict[str, Job] = {}  # may have rows, though nobody was told so
        self._deleted: collections.deque[str] = collections.deque(maxlen=REMEMBERED_DELETIONS)
        self._losses_mended = 0  # of `Store.losses`: as of when the database has all again
        self._changed = asyncio.Event()
        self.queue = FairQueue()
        self.durations = Durations()
        self._forecast = Forecast(self._shelf, self.queue, self.durations)

    @property
    def trouble(self) -> str | None:
        """Why the database takes nothing now; None while it does."""
        return self._calls.trouble

    @property
    def lost(self) -> str | None:
        """Why this server must end: the database is not its own any more."""
        return self._calls.lost

    def load(self, jobs: list[Job], is_whole: Callable[[Job], bool]) -> None:
        """Takes up what survived; blocking, before anything else runs.

        A job that ran when the last server ended is completed if its files had got their place,
        and else tried again.

        Args:
            jobs: all that the database has, oldest first.
            is_whole: whether all files of a job are in their place.

        Raises:
            StoreError: the database cannot be written.
        """
        unreadable = [job.id for job in jobs if job.is_unreadable]
        if unreadable:
            logger.warning(
                "%d jobs cannot be read by this version; they are shown as failed and stay in the "
                "database: %s",
                len(unreadable),
                ", ".join(unreadable[:20]),
            )
        seen = [at for job in jobs for at in (job.created_at, job.finished_at) if at]
        self._clock = ExpiryClock(last_seen=max(seen, default=None))
        for job in jobs:
            if job.state == State.IN_PROGRESS:
                job = self._after_restart(job, is_whole)
            self._add(job)
            self._learn(job)

    def find(self, job_id: str) -> Job | None:
        """A job, whoever owns it."""
        entry = self._shelf.entries.get(job_id)
        return None if entry is None else entry.job

    def find_owned(self, owner: str, job_id: str) -> Job | None:
        """A job if it is this owner's and has not expired."""
        job = self.find(job_id)
        if job is None or job.owner != owner or _is_expired(job, self._clock.now()):
            return None
        return job

    def find_idempotent(self, owner: str, key: str) -> Job | None:
        """The job that was accepted with this idempotency key."""
        return self._shelf.find_idempotent(owner, key)

    def group_of(self, first: Job) -> list[Job]:
        """A job and those that the same request asked for; see `Shelf.group_of`."""
        return self._shelf.group_of(first)

    def page(
        self, owner: str, *, after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[str], bool]:
        """Ids of an owner's jobs, and whether there are more; see `Shelf.page`."""
        return self._shelf.page(owner, after=after, limit=limit, newest_first=newest_first)

    def kept_of(self, owner: str) -> Kept:
        """What an owner's finished jobs take up."""
        return self._shelf.kept_of(owner)

    def oldest_failed(self, owner: str, number: int) -> list[str]:
        """So many of an owner's jobs that ended without a video, oldest first."""
        found = []
        for job_id in self._shelf.ids_of(owner):
            job = self._shelf.entries[job_id].job
            if len(found) < number and job.state == State.FAILED and not job.is_unreadable:
                found.append(job_id)
        return found

    def body(self, job_id: str) -> bytes:
        """A job's JSON."""
        entry = self._shelf.entries[job_id]
        body = self._bodies.get(job_id)
        if body is None:
            # That of a waiting job is kept without its place in the queue, which others change.
            body = encode_video(video_object(entry.job, running=entry.running, damage=entry.damage))
            self._bodies.put(job_id, body)
        if entry.job.state != State.QUEUED:
            return body
        seconds = self._forecast.seconds_until_end(job_id)
        return encode_place(body, self.queue.position(job_id), seconds)

    def needs(self, digest: str) -> bool:
        """Whether a job, or one that may be in the database, is made from this picture or clip."""
        doubtful = any(digest in job.media for job in self._doubtful.values())
        return doubtful or digest in self._shelf.media

    def next_change(self) -> asyncio.Event:
        """An event that is set when any job changes; ask again after it was."""
        return self._changed

    def wake(self) -> None:
        """Sets the event that `next_change` gave out."""
        self._changed.set()
        self._changed = asyncio.Event()

    def completed_ids(self) -> set[str]:
        """Jobs that have files."""
        return {
            job_id
            for job_id, entry in self._shelf.entries.items()
            if entry.job.state == State.COMPLETED
        }

    def completed(self) -> list[Job]:
        """Jobs that have files."""
        return [self._shelf.entries[job_id].job for job_id in sorted(self.completed_ids())]

    def known_jobs(self) -> KnownJobs:
        """What the files are compared with."""
        jobs = [entry.job for entry in self._shelf.entries.values()]
        ended = {job.id for job in jobs if job.state == State.FAILED and not job.is_unreadable}
        unfinished = {job.id for job in jobs if not job.is_finished}
        with_files = {job.id for job in jobs} - ended - unfinished
        return KnownJobs(with_files=with_files, ended=ended, unfinished=unfinished)

    def note_damage(self, job_id: str, damage: str | None) -> None:
        """Shows what is wrong with a completed job's files, or that it is put right."""
        entry = self._shelf.entries.get(job_id)
        if entry is not None and entry.damage != damage:
            entry.damage = damage
            self._bodies.forget(job_id)
            self.wake()

    async def accept(self, make_job: Callable[[str | None], Job]) -> Job:
        """Takes a new job; once this returns, it will end, whatever happens.

        Args:
            make_job: makes it from the newest id; raises if it is not to be taken after all. No
                other change happens in between. It is asked again when the database turns out to
                have a job with the same idempotency key.

        Raises:
            StoreUnavailable: it is not taken, now or later.
        """
        return (await self.accept_all(lambda newest: [make_job(newest)]))[0]

    async def accept_all(self, make_jobs: Callable[[str | None], list[Job]]) -> list[Job]:
        """Takes several new jobs, all or none; only the first may have an idempotency key.

        Args:
            make_jobs: makes them, each with the id of the first; see `accept`.

        Raises:
            StoreUnavailable: none is taken, now or later.
        """
        return await self.operations.to_the_end(self._accept(make_jobs))

    async def claim(self, job_id: str) -> Job | None:
        """Starts a queued job; None if it is not there any more."""
        return await self.operations.to_the_end(self._claim(job_id))

    def report(self, job_id: str, progress: Progress) -> None:
        """Notes where a running job is; not in the database, since it is worth nothing later."""
        entry = self._shelf.entries.get(job_id)
        if entry is not None and entry.job.state == State.IN_PROGRESS:
            entry.running = self.durations.running(entry.job, progress, entry.running)
            self._bodies.forget(job_id)
            self._notify(queue=self._forecast.is_old)

    async def note_made(self, job_id: str, metadata: dict[str, Any]) -> bool:
        """Notes what a running job's complete files are, before they get their place.

        A server that ends in between finds them there and knows that they are this job's. False if
        the job does not run any more.
        """
        return await self._end_running(job_id, lambda job: job.made(metadata))

    async def complete(self, job_id: str, metadata: dict[str, Any]) -> bool:
        """Ends a running job whose files are in place; False if it does not run any more."""
        done = await self._end_running(
            job_id, lambda job: job.completed(metadata, keep_seconds=self._keep_seconds)
        )
        if done:
            self._learn(self._shelf.entries[job_id].job)
        return done

    async def fail(self, job_id: str, code: Failure, message: str) -> bool:
        """Ends a running job without a video; False if it does not run any more."""
        return await self._end_running(
            job_id, lambda job: job.failed(code, message, keep_seconds=self._keep_seconds)
        )

    async def requeue(self, job_id: str) -> bool:
        """Puts a running job back that was ended in good order; False if it does not run."""
        return await self._end_running(job_id, lambda job: job.requeued(counts=False))

    async def put_back(self, job_id: str) -> bool:
        """Puts a running job back that was interrupted: the attempt counts, as after a crash."""
        return await self._end_running(job_id, self._after_interruption)

    async def cancel(self, job_id: str) -> Job | None:
        """Cancels a job that is not finished; returns the job as it then is, None if it is gone."""
        return await self.operations.to_the_end(self._cancel(job_id))

    async def delete(self, job_ids: list[str]) -> None:
        """Forgets jobs; their files are the caller's to remove."""
        await self.operations.to_the_end(self._delete(job_ids))

    async def check(self) -> None:
        """Finds out how the database is, and puts right what its absence has left.

        What is wrong with it is in `trouble` and `lost` then, and is not raised.
        """
        try:
            await self._calls.call(self._store.check)
            if self._may_be_older or self._doubtful:
                await self.operations.to_the_end(self._reconcile())
        except StoreUnavailable as error:
            self._calls.note(error)
        except OwnershipLost:
            return
        else:
            self._calls.note(None)

    def now(self) -> float:
        """Unix seconds by the clock that jobs expire by."""
        return self._clock.now()

    def expired(self) -> list[str]:
        """Jobs whose time is over."""
        now = self._clock.now()
        return [i for i, entry in self._shelf.entries.items() if _is_expired(entry.job, now)]

    async def close(self) -> None:
        """Waits for the last write."""
        await self.operations.close()
        await self._calls.close()

    async def _accept(self, make_jobs: Callable[[str | None], list[Job]]) -> list[Job]:
        async with self._writing:
            jobs = make_jobs(self._shelf.newest)
            if jobs[0].id in self._shelf.entries:
                return jobs
            self._calls.require()
            try:
                await self._insert(jobs)
            except StoreRefused:
                await self._learn_of_row(jobs[0])
                return make_jobs(self._shelf.newest)  # it answers for those that are there
            except StoreUnavailable:
                if not await self._were_inserted(jobs):
                    raise
            for job in jobs:
                self._add(job)
            self._notify(queue=True)
            return jobs

    async def _insert(self, jobs: list[Job]) -> None:
        try:
            await self._calls.call(self._store.insert, *jobs)
        except StoreRefused:
            if not await self._was_older():  # where a deleted job may have its idempotency key
                raise
            await self._calls.call(self._store.insert, *jobs)

    async def _were_inserted(self, jobs: list[Job]) -> bool:
        """What became of an insertion that gave no answer."""
        try:
            return await self._calls.call(self._store.find, jobs[0].id) is not None
        except StoreUnavailable as error:
            # Nobody is told that they are accepted; if they are there later, they go.
            self._doubtful |= {job.id: job for job in jobs}
            self._calls.note(error)
            raise

    async def _learn_of_row(self, refused: Job) -> None:
        """Takes over the row that has the idempotency key of a job that was refused for it."""
        found = None
        if refused.idempotency_key is not None:
            key = (refused.owner, refused.idempotency_key)
            found = await self._calls.call(self._store.find_idempotent, *key)
        if found is None:
            raise StoreRefused(f"{self._store.name} refuses the job {refused.id}")
        self._doubtful.pop(found.id, None)
        if found.id not in self._shelf.entries:
            if found.state == State.IN_PROGRESS:
                found = found.requeued(counts=True)
            self._add(found)
            self._notify(queue=True)

    async def _claim(self, job_id: str) -> Job | None:
        async with self._writing:
            entry = self._shelf.entries.get(job_id)
            if entry is None or entry.job.state != State.QUEUED:
                return None
            if not await self._move(entry, entry.job.started()):
                return None
            self.queue.served(entry.job.owner, work_of(entry.job.request))
            self._forecast.running.add(job_id)
            return entry.job

    async def _cancel(self, job_id: str) -> Job | None:
        async with self._writing:
            entry = self._shelf.entries.get(job_id)
            if entry is None:
                return None
            if not entry.job.is_finished:
                job = entry.job.failed(
                    Failure.CANCELLED, "the job was cancelled", keep_seconds=self._keep_seconds
                )
                if not await self._move(entry, job):
                    return self.find(job_id)
            return entry.job

    async def _delete(self, job_ids: list[str]) -> None:
        async with self._writing:
            present = [job_id for job_id in job_ids if job_id in self._shelf.entries]
            await self._repeatable(self._store.delete, present)
            for job_id in present:
                self._forget(self._shelf.entries[job_id])
                self._deleted.append(job_id)

    async def _end_running(self, job_id: str, move: Callable[[Job], Job]) -> bool:
        return await self.operations.to_the_end(self._move_running(job_id, move))

    async def _move_running(self, job_id: str, move: Callable[[Job], Job]) -> bool:
        async with self._writing:
            entry = self._shelf.entries.get(job_id)
            if entry is None or entry.job.state != State.IN_PROGRESS:
                return False
            return await self._move(entry, move(entry.job))

    async def _move(self, entry: Entry, job: Job) -> bool:
        """Writes a job's new state, then shows it; False if the database has no place for it."""
        try:
            if not await self._update(job):
                logger.warning("the job's row is gone from the database", extra={"job": job.id})
                self._forget(entry)
                return False
        except StoreRefused as error:
            logger.error("the job is set aside: %s", error, extra={"job": job.id})
            self._show(entry, entry.job.set_aside())
            return False
        self._show(entry, job)
        return True

    async def _update(self, job: Job) -> bool:
        """Writes a job's new state; False if its row was taken out of the database."""
        if await self._repeatable(self._store.update, job):
            return True
        return await self._was_older() and await self._repeatable(self._store.update, job)

    async def _was_older(self) -> bool:
        """Whether a row was missed because an older copy took the database's place a moment ago.

        `check` would find that out within seconds; what it lacks is written here and now.
        """
        await self._repeatable(self._store.check)
        if not self._may_be_older:
            return False
        await self._bring_up_to_date()
        return True

    @property
    def _may_be_older(self) -> bool:
        return self._store.losses > self._losses_mended

    async def _repeatable(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A write that does the same when it is done twice: again, if it gave no answer."""
        self._calls.require()
        try:
            return await self._calls.call(function, *arguments)
        except StoreUnavailable as first:
            logger.warning("a write is repeated: %s", first)
        try:
            return await self._calls.call(function, *arguments)
        except StoreUnavailable as error:
            self._calls.note(error)
            raise

    async def _reconcile(self) -> None:
        """Brings a database that was away, or is an older copy, to what clients were told."""
        async with self._writing:
            await self._bring_up_to_date()

    async def _bring_up_to_date(self) -> None:
        losses = self._store.losses  # one that comes meanwhile is not mended by this
        states: dict[str, str] = await self._calls.call(self._store.states)
        ours = [entry.job for entry in self._shelf.entries.values()]
        behind = [
            job
            for job in ours
            if self._may_be_older and not job.is_unreadable and states.get(job.id) != str(job.state)
        ]
        unwanted = (self._doubtful.keys() | set(self._deleted)) - self._shelf.entries.keys()
        unwanted &= states.keys()
        if unwanted:  # first: one of them may have the idempotency key of a job to be written
            await self._calls.call(self._store.delete, sorted(unwanted))
        if behind:
            logger.warning(
                "the database came back without the last changes of %d jobs, which are written "
                "again",
                len(behind),
            )
            await self._calls.call(self._store.rewrite, behind)
        self._doubtful.clear()
        self._losses_mended = losses

    def _show(self, entry: Entry, job: Job) -> None:
        before = entry.job
        self._shelf.replace(entry, job)
        self._bodies.forget(job.id)
        if before.state == State.QUEUED:
            self.queue.remove(job.owner, job.id)
        if job.state == State.QUEUED:
            self.queue.add(job.owner, job.id, work_of(job.request))
        self._notify(queue=State.QUEUED in (before.state, job.state))

    def _add(self, job: Job) -> None:
        self._shelf.add(job)
        if job.state == State.QUEUED:
            self.queue.add(job.owner, job.id, work_of(job.request))

    def _forget(self, entry: Entry) -> None:
        job = entry.job
        self._shelf.drop(job)
        self._bodies.forget(job.id)
        if job.state == State.QUEUED:
            self.queue.remove(job.owner, job.id)
        self._notify(queue=True)

    def _after_restart(self, job: Job, is_whole: Callable[[Job], bool]) -> Job:
        """What becomes of a job that ran when the last server ended; written, if it can be."""
        if job.metadata is not None and files_of(job) and is_whole(job):
            after = job.completed(job.metadata, keep_seconds=self._keep_seconds)
        else:
            after = self._after_interruption(job)
        try:
            self._store.update(after)
        except StoreRefused as error:
            logger.error("the job is set aside: %s", error, extra={"job": job.id})
            return job.set_aside()
        return after

    def _after_interruption(self, job: Job) -> Job:
        if job.attempts < self._max_attempts:
            logger.info("the job is tried again", extra={"job": job.id, "attempt": job.attempts})
            return job.requeued(counts=True)
        message = f"the server ended {job.attempts} times while it made this video"
        return job.failed(Failure.INTERRUPTED, message, keep_seconds=self._keep_seconds)

    def _learn(self, job: Job) -> None:
        """Takes a finished job's seconds into account."""
        metadata = job.metadata or {}
        seconds, count = metadata.get("seconds"), metadata.get("made_together")
        if job.state == State.COMPLETED and isinstance(seconds, dict):
            self.durations.observe(job.request, seconds, count if isinstance(count, int) else 1)

    def _notify(self, *, queue: bool) -> None:
        """Wakes those who wait for a change; when the queue moved, its jobs end at other times."""
        if queue:
            self._forecast.forget()
        self.wake()


def _is_expired(job: Job, now: float) -> bool:
    return job.expires_at is not None and job.expires_at <= now
