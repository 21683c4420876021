"""The jobs that are not finished, as each server of the API sees them: at most a second old.

Places in the queue, progress and the waking of event streams come from here, so that neither
PostgreSQL nor Temporal is asked more often because more clients poll.
"""

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Callable, Iterable

from server.fleet.calls import FleetCalls
from server.fleet.forecast import ends
from server.fleet.upkeep import Upkeep
from server.fleet.workflows import Look, TemporalAway, Workflows
from server.jobs.database import StoreUnavailable
from server.jobs.estimate import Durations, Running, work_of
from server.jobs.fair_queue import FairQueue
from server.jobs.job import Job, State
from server.jobs.seam import Queue

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 1.0
LEARNED_FROM = 100
"""Completed jobs that durations are learned from at the start."""


@dataclasses.dataclass(slots=True)
class Seen:
    """A job that is not finished, and where it is if it runs."""

    job: Job
    slice: str | None = None
    running: Running | None = None


class Line:
    """The jobs of one model that are not finished: its slices take no others."""

    def __init__(self) -> None:
        self.queue = FairQueue()
        self.durations = Durations()
        self.running: set[str] = set()
        self.ends: dict[str, float | None] | None = None


class Mirror:
    """What is under way in the fleet."""

    def __init__(
        self,
        calls: FleetCalls,
        upkeep: Upkeep,
        workflows: Workflows,
        *,
        count_slices: Callable[[str], int],
    ):
        """Knows nothing until `refresh`.

        Args:
            calls: of the database.
            upkeep: of the table.
            workflows: of the jobs.
            count_slices: how many make the videos of a model.
        """
        self._calls, self._upkeep, self._workflows = calls, upkeep, workflows
        self._count_slices = count_slices
        self._seen: dict[str, Seen] = {}
        self._lines: dict[str, Line] = {}
        self._strange: set[str] = set()  # unfinished rows that only a newer version understands
        self._changed = asyncio.Event()
        self.odd: dict[str, Look | None] = {}
        """Running jobs of which Temporal knows nothing, or that they ended."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keeps up until the block is left."""
        task = asyncio.create_task(self._keep_up(), name="mirror")
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def next_change(self) -> asyncio.Event:
        """An event that is set when any job changes; ask again after it was."""
        return self._changed

    def wake(self) -> None:
        """Sets the event that `next_change` gave out."""
        self._changed.set()
        self._changed = asyncio.Event()

    def find(self, job_id: str) -> Job | None:
        """A job that was not finished a second ago."""
        seen = self._seen.get(job_id)
        return None if seen is None else seen.job

    def where(self, job: Job) -> Running | None:
        """Where a running job is."""
        seen = self._seen.get(job.id)
        is_same = seen is not None and seen.job.attempts == job.attempts
        return seen.running if seen is not None and is_same else None

    def place(self, job: Job) -> tuple[int, float | None]:
        """Position of a waiting job, 1 for the next one, and seconds until it is finished."""
        line = self._line(job.model)
        seen = self._seen.get(job.id)
        if seen is None or seen.job.state != State.QUEUED:  # accepted or given back just now
            older = sum(each < job.id for each in line.queue.order())
            return older + 1, None
        if line.ends is None:
            line.ends = self._forecast(job.model, line)
        return line.queue.position(job.id), line.ends.get(job.id)

    def queue(self) -> Queue:
        """What waits."""
        waiting = [s.job.created_at for s in self._seen.values() if s.job.state == State.QUEUED]
        return Queue(length=len(waiting), oldest_at=min(waiting, default=None))

    def waiting(self) -> list[str]:
        """Ids of the jobs that wait, oldest first."""
        return sorted(i for i, seen in self._seen.items() if seen.job.state == State.QUEUED)

    def add(self, jobs: Iterable[Job]) -> None:
        """Takes jobs in that were accepted here just now."""
        for job in jobs:
            self._put(job)
        self.wake()

    def drop(self, job_ids: Iterable[str]) -> None:
        """Leaves jobs out that have ended here just now."""
        for job_id in job_ids:
            self._take(job_id)
        self.wake()

    async def learn(self) -> None:
        """Learns from earlier jobs how long a video takes.

        Raises:
            StoreUnavailable: they cannot be read.
        """
        for job in await self._calls.call(self._upkeep.completed_last, LEARNED_FROM):
            self._learn(job)

    async def refresh(self) -> None:
        """Takes in what has changed.

        Raises:
            StoreUnavailable: the table cannot be read.
        """
        states = await self._calls.call(self._upkeep.states)
        moved = {i for i in states.keys() & self._seen.keys() if self._has_moved(i, *states[i])}
        self._strange &= states.keys()
        others = (states.keys() ^ self._seen.keys()) - self._strange
        rows = await self._calls.call(self._upkeep.rows, sorted(others)) if others else []
        found = {job.id: job for job in rows}
        for job_id in others:
            job = found.get(job_id)
            if job is not None and not job.is_finished:
                self._put(job)
                continue
            self._strange |= states.keys() & {job_id}
            self._take(job_id)
            if job is not None:
                self._learn(job)
        for job_id in moved & self._seen.keys():
            state, attempts, slice_ = states[job_id]
            before = self._seen[job_id]
            job = dataclasses.replace(before.job, state=State(state), attempts=attempts)
            self._put(job, slice_)
        has_progress = await self._look()
        if moved or others or has_progress:
            self.wake()

    async def _keep_up(self) -> None:
        has_learned = False
        while True:
            try:
                if not has_learned:
                    await self.learn()
                    has_learned = True
                await self.refresh()
            except StoreUnavailable:
                pass  # the housekeeping says so
            except Exception:
                logger.exception("the mirror of the jobs failed and goes on")
            await asyncio.sleep(REFRESH_SECONDS)

    async def _look(self) -> bool:
        """Asks Temporal where the running jobs are; whether anything is new."""
        ids = [i for i, seen in self._seen.items() if seen.job.state == State.IN_PROGRESS]
        if self._workflows.trouble is not None:
            ids = ids[:1]  # enough to find out that it is there again
        looks = await asyncio.gather(*(self._look_at(job_id) for job_id in ids))
        for line in self._lines.values():
            line.ends = None
        return any(looks)

    async def _look_at(self, job_id: str) -> bool:
        try:
            look = await self._workflows.look(job_id)
        except TemporalAway:
            return False
        if look is None or look.ended is not None:
            self.odd[job_id] = look
            return False
        seen = self._seen.get(job_id)
        if look.progress is None or seen is None or seen.job.state != State.IN_PROGRESS:
            return False
        before = seen.running
        durations = self._line(seen.job.model).durations
        seen.running = durations.running(seen.job, look.progress, before)
        return seen.running != before

    def _has_moved(self, job_id: str, state: str, attempts: int, slice_: str | None) -> bool:
        seen = self._seen[job_id]
        return (seen.job.state, seen.job.attempts, seen.slice) != (state, attempts, slice_)

    def _put(self, job: Job, slice_: str | None = None) -> None:
        before, line = self._seen.get(job.id), self._line(job.model)
        was_waiting = before is not None and before.job.state == State.QUEUED
        self._seen[job.id] = Seen(job, slice_)
        work = work_of(job.request)
        if was_waiting and job.state != State.QUEUED:
            line.queue.remove(job.owner, job.id)
            line.queue.served(job.owner, work)
        elif job.state == State.QUEUED and not was_waiting:
            line.queue.add(job.owner, job.id, work)
        (line.running.add if job.state == State.IN_PROGRESS else line.running.discard)(job.id)
        line.ends = None

    def _take(self, job_id: str) -> None:
        seen = self._seen.pop(job_id, None)
        if seen is None:
            return
        line = self._line(seen.job.model)
        if seen.job.state == State.QUEUED:
            line.queue.remove(seen.job.owner, job_id)
        line.running.discard(job_id)
        line.ends = None

    def _line(self, model: str) -> Line:
        return self._lines.setdefault(model, Line())

    def _forecast(self, model: str, line: Line) -> dict[str, float | None]:
        left = [self._left(self._seen[job_id], line) for job_id in sorted(line.running)]
        order = line.queue.order()
        totals = [line.durations.total(self._seen[job_id].job.request) for job_id in order]
        return dict(zip(order, ends(left, totals, self._count_slices(model)), strict=True))

    def _left(self, seen: Seen, line: Line) -> float | None:
        if seen.running is None:
            return line.durations.total(seen.job.request)
        return seen.running.seconds_left

    def _learn(self, job: Job) -> None:
        """Takes a finished job's seconds into account."""
        seconds = (job.metadata or {}).get("seconds")
        if job.state == State.COMPLETED and isinstance(seconds, dict):
            self._line(job.model).durations.observe(job.request, seconds)
