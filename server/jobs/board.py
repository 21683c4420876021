"""All jobs in memory: what is served. Every change is in the database before it is here.

One process owns the jobs, so reads need no database at all; the JSON of each job is kept until the
job changes, because many clients poll.
"""

import asyncio
import bisect
import concurrent.futures
import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any

from server.engine.failure import Failure
from server.engine.messages import Progress
from server.jobs.estimate import Durations, Running
from server.jobs.fair_queue import FairQueue
from server.jobs.job import Job, State
from server.jobs.store import Store
from server.jobs.video_object import encode_place, encode_video, video_object

logger = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True)
class _Entry:
    """A job, where it is if it runs, and its JSON if that was asked for since it last changed.

    The JSON of a waiting job is kept without its place in the queue, which others change.
    """

    job: Job
    running: Running | None = None
    body: bytes | None = None


REFRESH_SECONDS = 1.0
"""How old the seconds left of waiting jobs may be."""


class Board:
    """The jobs of one server."""

    def __init__(self, store: Store, *, keep_seconds: float, max_attempts: int):
        self._store = store
        self._keep_seconds = keep_seconds
        self._max_attempts = max_attempts
        self._entries: dict[str, _Entry] = {}
        self._ids: dict[str, list[str]] = {}  # by owner, oldest first
        self._idempotent: dict[tuple[str, str], str] = {}
        self._newest: str | None = None
        self._running: str | None = None
        self._ends: dict[str, float | None] | None = None  # seconds left, of those that wait
        self._refreshed_at = 0.0
        self._writing = asyncio.Lock()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="store")
        self._changed = asyncio.Event()
        self.queue = FairQueue()
        self.durations = Durations()

    async def load(self) -> None:
        """Reads what survived; a job that ran when the last server ended is tried again."""
        for job in await self._in_thread(self._store.load):
            if job.state == State.IN_PROGRESS:
                job = self._after_interruption(job)
                await self._in_thread(self._store.update, job)
            self._add(job)
            if job.state == State.COMPLETED and job.metadata is not None:
                self.durations.observe(job.request, job.metadata.get("seconds", {}))

    def find(self, job_id: str) -> Job | None:
        """A job, whoever owns it."""
        entry = self._entries.get(job_id)
        return None if entry is None else entry.job

    def find_owned(self, owner: str, job_id: str) -> Job | None:
        """A job if it is this owner's and has not expired."""
        job = self.find(job_id)
        if job is None or job.owner != owner or _is_expired(job, time.time()):
            return None
        return job

    def find_idempotent(self, owner: str, key: str) -> Job | None:
        """The job that was accepted with this idempotency key."""
        job_id = self._idempotent.get((owner, key))
        return None if job_id is None else self.find(job_id)

    def page(
        self, owner: str, *, after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[str], bool]:
        """Ids of an owner's jobs, and whether there are more.

        Args:
            owner: whose.
            after: the id before the first one; it need not exist any more.
            limit: ids at most.
            newest_first: the order.
        """
        ids = self._ids.get(owner, [])
        if newest_first:
            end = len(ids) if after is None else bisect.bisect_left(ids, after)
            page = ids[max(end - limit, 0) : end][::-1]
            return page, end > limit
        start = 0 if after is None else bisect.bisect_right(ids, after)
        return ids[start : start + limit], len(ids) > start + limit

    def body(self, job_id: str) -> bytes:
        """A job's JSON."""
        entry = self._entries[job_id]
        if entry.body is None:
            entry.body = encode_video(video_object(entry.job, running=entry.running))
        if entry.job.state != State.QUEUED:
            return entry.body
        position, seconds = self.queue.position(job_id), self._seconds_until_end(job_id)
        return encode_place(entry.body, position, seconds)

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
            job_id for job_id, entry in self._entries.items() if entry.job.state == State.COMPLETED
        }

    async def accept(self, make_job: Callable[[str | None], Job]) -> Job:
        """Takes a new job; once this returns, it will end, whatever happens.

        Args:
            make_job: makes it from the newest id; raises if it is not to be taken after all. No
                other change happens in between.
        """
        async with self._writing:
            job = make_job(self._newest)
            if job.id not in self._entries:
                await self._in_thread(self._store.insert, job)
                self._add(job)
                self._notify(queue=True)
            return job

    async def claim(self, job_id: str) -> Job | None:
        """Starts a queued job; None if it is not there any more."""
        async with self._writing:
            entry = self._entries.get(job_id)
            if entry is None or entry.job.state != State.QUEUED:
                return None
            await self._move(entry, entry.job.started())
            self.queue.served(entry.job.owner)
            self._running = job_id
            return entry.job

    def report(self, job_id: str, progress: Progress) -> None:
        """Notes where a running job is; not in the database, since it is worth nothing later."""
        entry = self._entries.get(job_id)
        if entry is not None and entry.job.state == State.IN_PROGRESS:
            entry.running = self.durations.running(entry.job, progress, entry.running)
            entry.body = None
            self._notify(queue=time.monotonic() - self._refreshed_at > REFRESH_SECONDS)

    async def complete(self, job_id: str, metadata: dict[str, Any]) -> bool:
        """Ends a running job whose files are in place; False if it does not run any more."""
        done = await self._end_running(
            job_id, lambda job: job.completed(metadata, keep_seconds=self._keep_seconds)
        )
        if done:
            self.durations.observe(self._entries[job_id].job.request, metadata.get("seconds", {}))
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
        async with self._writing:
            entry = self._entries.get(job_id)
            if entry is None:
                return None
            if not entry.job.is_finished:
                job = entry.job.failed(
                    Failure.CANCELLED, "the job was cancelled", keep_seconds=self._keep_seconds
                )
                await self._move(entry, job)
            return entry.job

    async def delete(self, job_ids: list[str]) -> None:
        """Forgets jobs; their files are the caller's to remove."""
        async with self._writing:
            present = [job_id for job_id in job_ids if job_id in self._entries]
            await self._in_thread(self._store.delete, present)
            for job_id in present:
                self._drop(self._entries.pop(job_id).job)
            self._notify(queue=True)

    def expired(self) -> list[str]:
        """Jobs whose time is over."""
        now = time.time()
        return [i for i, entry in self._entries.items() if _is_expired(entry.job, now)]

    def close(self) -> None:
        """Waits for the last write."""
        self._thread.shutdown()

    async def _end_running(self, job_id: str, move: Callable[[Job], Job]) -> bool:
        async with self._writing:
            entry = self._entries.get(job_id)
            if entry is None or entry.job.state != State.IN_PROGRESS:
                return False
            await self._move(entry, move(entry.job))
            return True

    async def _move(self, entry: _Entry, job: Job) -> None:
        """Writes a job's new state, then shows it."""
        await self._in_thread(self._store.update, job)
        before, entry.job = entry.job, job
        entry.running = entry.body = None
        if before.state == State.QUEUED:
            self.queue.remove(job.owner, job.id)
        if job.state == State.QUEUED:
            self.queue.add(job.owner, job.id)
        self._notify(queue=State.QUEUED in (before.state, job.state))

    def _add(self, job: Job) -> None:
        self._entries[job.id] = _Entry(job)
        bisect.insort(self._ids.setdefault(job.owner, []), job.id)
        self._newest = max(self._newest or job.id, job.id)
        if job.idempotency_key is not None:
            self._idempotent[job.owner, job.idempotency_key] = job.id
        if job.state == State.QUEUED:
            self.queue.add(job.owner, job.id)

    def _drop(self, job: Job) -> None:
        ids = self._ids[job.owner]
        del ids[bisect.bisect_left(ids, job.id)]
        if not ids:
            del self._ids[job.owner]
        if job.idempotency_key is not None:
            del self._idempotent[job.owner, job.idempotency_key]
        if job.state == State.QUEUED:
            self.queue.remove(job.owner, job.id)

    def _after_interruption(self, job: Job) -> Job:
        if job.attempts < self._max_attempts:
            logger.info("the job is tried again", extra={"job": job.id, "attempt": job.attempts})
            return job.requeued(counts=True)
        message = f"the server ended {job.attempts} times while it made this video"
        return job.failed(Failure.INTERRUPTED, message, keep_seconds=self._keep_seconds)

    def _notify(self, *, queue: bool) -> None:
        """Wakes those who wait for a change; when the queue moved, its jobs end at other times."""
        if queue:
            self._refreshed_at = time.monotonic()
            self._ends = None
        self.wake()

    def _seconds_until_end(self, job_id: str) -> float | None:
        """Seconds until a waiting job is finished: what runs, what is before it, and itself."""
        if self._ends is None:
            end = self._running_left()
            self._ends = {}
            for waiting in self.queue.order():
                own = self.durations.total(self._entries[waiting].job.request)
                end = None if end is None or own is None else end + own
                self._ends[waiting] = end
        return self._ends[job_id]

    def _running_left(self) -> float | None:
        entry = None if self._running is None else self._entries.get(self._running)
        if entry is None or entry.job.state != State.IN_PROGRESS:
            return 0.0
        if entry.running is None:
            return self.durations.total(entry.job.request)
        return entry.running.seconds_left

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, function, *arguments)


def _is_expired(job: Job, now: float) -> bool:
    return job.expires_at is not None and job.expires_at <= now
