"""When the jobs that wait will be finished: after what runs, what is before them, themselves."""

import time

from server.jobs.estimate import Durations
from server.jobs.fair_queue import FairQueue
from server.jobs.job import State
from server.jobs.shelf import Shelf

REFRESH_SECONDS = 1.0
"""How old the seconds left of waiting jobs may be."""


class Forecast:
    """Seconds left of waiting jobs, worked out when they are asked for.

    Attributes:
        running: the jobs that were started and not seen to have ended; some are made together.
    """

    def __init__(self, shelf: Shelf, queue: FairQueue, durations: Durations):
        self._shelf, self._queue, self._durations = shelf, queue, durations
        self._ends: dict[str, float | None] | None = None
        self._refreshed_at = 0.0
        self.running: set[str] = set()

    @property
    def is_old(self) -> bool:
        """Whether it is time to work them out anew, though the queue is what it was."""
        return time.monotonic() - self._refreshed_at > REFRESH_SECONDS

    def forget(self) -> None:
        """The queue moved, or the running job did: all end at other times."""
        self._refreshed_at = time.monotonic()
        self._ends = None

    def seconds_until_end(self, job_id: str) -> float | None:
        """Seconds until a waiting job is finished; None where nothing is known yet."""
        if self._ends is None:
            end = self._running_left()
            self._ends = {}
            for waiting in self._queue.order():
                own = self._durations.total(self._shelf.entries[waiting].job.request)
                end = None if end is None or own is None else end + own
                self._ends[waiting] = end
        return self._ends[job_id]

    def _running_left(self) -> float | None:
        entries = [self._shelf.entries.get(job_id) for job_id in self.running]
        running = [e for e in entries if e is not None and e.job.state == State.IN_PROGRESS]
        self.running = {entry.job.id for entry in running}
        lefts = [
            self._durations.total(entry.job.request)
            if entry.running is None
            else entry.running.seconds_left
            for entry in running
        ]
        known = [left for left in lefts if left is not None]
        return max(known, default=0.0) if len(known) == len(lefts) else None
