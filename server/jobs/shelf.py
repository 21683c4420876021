"""The jobs in memory and the ways to find them. Knows nothing of databases or of time."""

import bisect
import collections
import dataclasses
from collections.abc import Iterable, Set
from typing import Any

from server.jobs.estimate import Running
from server.jobs.job import Job, State

MAX_BODY_BYTES = 32 << 20
"""Of JSON that is kept because many clients poll; what was not asked for longest goes first."""


@dataclasses.dataclass(slots=True)
class Entry:
    """A job, where it is if it runs, and what is wrong with its files if anything is."""

    job: Job
    running: Running | None = None
    damage: str | None = None


@dataclasses.dataclass(slots=True)
class Kept:
    """What an owner's finished jobs take up.

    Attributes:
        jobs: their number.
        failed: of them those that ended without a video, and can be read.
        file_bytes: of the others' files.
    """

    jobs: int = 0
    failed: int = 0
    file_bytes: int = 0


class Shelf:
    """Jobs by id, by owner and by idempotency key."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.newest: str | None = None
        self._ids: dict[str, list[str]] = {}  # by owner, oldest first
        self._idempotent: dict[tuple[str, str], str] = {}
        self._kept: dict[str, Kept] = {}
        self._media: collections.Counter[str] = collections.Counter()

    def add(self, job: Job) -> Entry:
        """Puts a job there."""
        entry = self.entries[job.id] = Entry(job)
        bisect.insort(self._ids.setdefault(job.owner, []), job.id)
        self.newest = max(self.newest or job.id, job.id)
        if job.idempotency_key is not None:
            self._idempotent[job.owner, job.idempotency_key] = job.id
        self._media.update(job.media)
        self._count(job, 1)
        return entry

    def replace(self, entry: Entry, job: Job) -> None:
        """Shows a job as it is now."""
        self._count(entry.job, -1)
        entry.job = job
        if job.state != State.IN_PROGRESS:  # else it is where it was: its files are complete
            entry.running = None
        self._count(job, 1)

    def drop(self, job: Job) -> None:
        """Takes a job away."""
        del self.entries[job.id]
        ids = self._ids[job.owner]
        del ids[bisect.bisect_left(ids, job.id)]
        if not ids:
            del self._ids[job.owner]
        if job.idempotency_key is not None:
            self._idempotent.pop((job.owner, job.idempotency_key), None)
        for digest in job.media:
            self._media[digest] -= 1
            if not self._media[digest]:
                del self._media[digest]
        self._count(job, -1)

    def find_idempotent(self, owner: str, key: str) -> Job | None:
        """The job that has this idempotency key."""
        entry = self.entries.get(self._idempotent.get((owner, key), ""))
        return None if entry is None else entry.job

    def group_of(self, first: Job) -> list[Job]:
        """A job and those after it that the same request asked for, as far as they are there."""
        ids = self.ids_of(first.owner)
        group = [first]
        for job_id in ids[bisect.bisect_right(ids, first.id) :]:
            job = self.entries[job_id].job
            if job.first_id is None:
                break  # they were taken together, so that no other lies between them
            if job.first_id == first.id:
                group.append(job)
        return group

    def ids_of(self, owner: str) -> list[str]:
        """An owner's jobs, oldest first; not to be changed."""
        return self._ids.get(owner, [])

    def kept_of(self, owner: str) -> Kept:
        """What an owner's finished jobs take up."""
        return self._kept.get(owner) or Kept()

    @property
    def media(self) -> Set[str]:
        """Digests of the pictures and clips that some job is made from."""
        return self._media.keys()

    def media_of(self, job_ids: Iterable[str]) -> set[str]:
        """Those of some jobs; ids of no job count for nothing."""
        entries = (self.entries.get(job_id) for job_id in job_ids)
        return {digest for entry in entries if entry is not None for digest in entry.job.media}

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
        ids = self.ids_of(owner)
        if newest_first:
            end = len(ids) if after is None else bisect.bisect_left(ids, after)
            page = ids[max(end - limit, 0) : end][::-1]
            return page, end > limit
        start = 0 if after is None else bisect.bisect_right(ids, after)
        return ids[start : start + limit], len(ids) > start + limit

    def _count(self, job: Job, by: int) -> None:
        if not job.is_finished:
            return
        kept = self._kept.setdefault(job.owner, Kept())
        kept.jobs += by
        kept.failed += by * (job.state == State.FAILED and not job.is_unreadable)
        kept.file_bytes += by * file_bytes(job)
        if not kept.jobs:
            del self._kept[job.owner]


class Bodies:
    """The JSON of jobs by id, those asked for last, up to a number of bytes."""

    def __init__(self, max_bytes: int = MAX_BODY_BYTES):
        self._max_bytes = max_bytes
        self._bytes = 0
        self._bodies: collections.OrderedDict[str, bytes] = collections.OrderedDict()

    def get(self, job_id: str) -> bytes | None:
        """The JSON of a job since it last changed, if it is kept."""
        body = self._bodies.get(job_id)
        if body is not None:
            self._bodies.move_to_end(job_id)
        return body

    def put(self, job_id: str, body: bytes) -> None:
        """Keeps it, at the expense of others."""
        self.forget(job_id)
        self._bodies[job_id] = body
        self._bytes += len(body)
        while self._bytes > self._max_bytes:
            _, oldest = self._bodies.popitem(last=False)
            self._bytes -= len(oldest)

    def forget(self, job_id: str) -> None:
        """The job has changed."""
        body = self._bodies.pop(job_id, None)
        if body is not None:
            self._bytes -= len(body)


def file_bytes(job: Job) -> int:
    """What a completed job's files take up."""
    return sum_bytes(job.metadata) if job.state == State.COMPLETED else 0


def sum_bytes(metadata: dict[str, Any] | None) -> int:
    """What the files take up that are noted in a job's metadata."""
    return sum(file["bytes"] for file in files_in(metadata).values())


def files_of(job: Job) -> dict[str, dict[str, Any]]:
    """Size and digest of each of a job's files, where they were noted as they should be."""
    return files_in(job.metadata)


def files_in(metadata: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The same, by a job's metadata."""
    files = (metadata or {}).get("files")
    if not isinstance(files, dict):
        return {}
    return {
        name: noted
        for name, noted in files.items()
        if isinstance(noted, dict) and isinstance(noted.get("bytes"), int)
    }
