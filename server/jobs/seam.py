"""Where jobs are kept and who sees that they are made: what the routes ask, and nothing else.

`server.jobs.local` keeps those of one slice in memory, `server.fleet.jobs` those of many in
PostgreSQL and Temporal.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

from server.jobs.job import Job
from server.jobs.shelf import Kept
from wan_tpu.media import Media


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What counts against the limits before an owner's next job.

    Attributes:
        waiting: jobs of all owners that wait.
        waiting_of_owner: jobs of this owner that wait.
        kept: what its finished jobs take up.
        upload_bytes: of the pictures and clips that its jobs are made from.
    """

    waiting: int
    waiting_of_owner: int
    kept: Kept
    upload_bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What waits, of all owners.

    Attributes:
        length: jobs.
        oldest_at: unix seconds at which the oldest was accepted; None if none waits.
    """

    length: int
    oldest_at: float | None


MakeJobs = Callable[[Sequence[Job], Standing, str | None], Sequence[Job]]
"""Makes the jobs of a request: from those that were accepted with its idempotency key before, what
counts against its owner, and the newest id there is. Raises if they are not to be taken."""


class Jobs(Protocol):
    """The jobs of a service.

    Every coroutine may raise `StoreUnavailable`: nothing has changed then, or it does so later.
    """

    @property
    def missing(self) -> list[str]:
        """What stands between the jobs and their being made, as sentences."""
        ...

    @property
    def is_available(self) -> bool:
        """Whether jobs can be written now."""
        ...

    @property
    def fatal(self) -> str | None:
        """Why the server must end at once, with an error."""
        ...

    @property
    def has_lost_process(self) -> bool:
        """Whether the server must end so that all processes of its slice start anew."""
        ...

    @property
    def is_draining(self) -> bool:
        """Whether no jobs are taken any more."""
        ...

    @property
    def retry_seconds(self) -> float:
        """When to come again to a service that takes no jobs."""
        ...

    def running(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Works until the block is left; then everything is closed."""
        ...

    async def drain(self) -> None:
        """Takes no more jobs, and lets go of what runs in good order."""
        ...

    def hurry(self) -> None:
        """Ends the time that `drain` gives."""
        ...

    def abandon(self) -> None:
        """Has it end without another write."""
        ...

    def close(self) -> None:
        """Lets others have what it owns, where it never ran."""
        ...

    def has_room(self) -> bool:
        """Whether there is room for the files of another job."""
        ...

    async def find(self, job_id: str) -> Job | None:
        """A job, whoever owns it; up to a second old."""
        ...

    async def find_owned(self, owner: str, job_id: str) -> Job | None:
        """A job as it is now, if it is this owner's and has not expired."""
        ...

    async def find_idempotent(self, owner: str, key: str) -> Job | None:
        """The job that was accepted with this idempotency key."""
        ...

    async def group_of(self, first: Job) -> list[Job]:
        """A job and those that the same request asked for."""
        ...

    async def page(
        self, owner: str, *, after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[Job], bool]:
        """An owner's jobs, and whether there are more.

        Args:
            owner: whose.
            after: the id before the first one; it need not exist any more.
            limit: jobs at most.
            newest_first: the order.
        """
        ...

    def bodies(self, jobs: Sequence[Job]) -> list[bytes]:
        """The JSON of jobs, with where they are in the queue or in their making."""
        ...

    def next_change(self) -> asyncio.Event:
        """An event that is set when any job changes; ask again after it was."""
        ...

    def wake(self) -> None:
        """Sets the event that `next_change` gave out."""
        ...

    async def queue(self) -> Queue:
        """What waits."""
        ...

    async def standing(self, owner: str) -> Standing:
        """What counts against an owner's next job."""
        ...

    async def accept(
        self, owner: str, idempotency_key: str | None, media: Media, make: MakeJobs
    ) -> list[Job]:
        """Takes jobs, all or none: once this returns, each ends, whatever happens.

        Args:
            owner: whose they are.
            idempotency_key: the client's.
            media: the pictures and clips that they are made from.
            make: makes them; nothing changes between what it is told and their being taken. It may
                be asked more than once.
        """
        ...

    async def cancel(self, job_id: str) -> Job | None:
        """Cancels a job that is not finished; returns it as it then is, None if it is gone."""
        ...

    async def delete(self, job_ids: Sequence[str]) -> None:
        """Forgets jobs, stops those that run, removes their files."""
        ...

    async def make_place(self, owner: str, number: int) -> None:
        """Forgets so many of an owner's jobs that ended without a video, oldest first."""
        ...
