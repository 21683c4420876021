"""Who is next: keys share the accelerator by the work they ask for, each in its own order."""

import bisect


class FairQueue:
    """Ids of waiting jobs. Each owner's jobs keep their order; owners alternate by work.

    Every job begins where its owner's jobs before it have ended on a common scale of work; the one
    that begins first is next. Whoever asks for eight times the work has an eighth of the turns, and
    whoever comes new begins where the others are, not where they once began.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, list[str]] = {}
        self._work: dict[str, float] = {}
        self._had: dict[str, float] = {}  # by owner: where on the scale its next job begins
        self._now = 0.0  # where on the scale the job began that was taken last
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._order: list[str] | None = None
        self._positions: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._work)

    def count(self, owner: str) -> int:
        """Waiting jobs of an owner."""
        return len(self._waiting.get(owner, ()))

    def add(self, owner: str, job_id: str, work: float = 1.0) -> None:
        """Puts a job where its age belongs: one that comes back goes to the front.

        Args:
            owner: whose it is.
            job_id: sorts by age.
            work: how much it asks for, in any unit.
        """
        if owner not in self._waiting:
            self._had[owner] = max(self._had.get(owner, 0.0), self._now)
        bisect.insort(self._waiting.setdefault(owner, []), job_id)
        self._work[job_id] = work
        self._order = None

    def remove(self, owner: str, job_id: str) -> None:
        """Takes a job out."""
        self._waiting[owner].remove(job_id)
        if not self._waiting[owner]:
            del self._waiting[owner]
        del self._work[job_id]
        self._order = None

    def served(self, owner: str, work: float = 1.0) -> None:
        """Notes that an owner had its turn, with so much work."""
        self._turn += 1
        self._turns[owner] = self._turn
        self._now = max(self._now, self._had.get(owner, 0.0))
        self._had[owner] = self._had.get(owner, self._now) + work
        for other in [o for o, had in self._had.items() if had <= self._now]:
            if other not in self._waiting:  # it would begin here anyway
                del self._had[other]
                self._turns.pop(other, None)
        self._order = None

    def order(self) -> list[str]:
        """All ids, next one first: by where they begin, then longest unserved first."""
        if self._order is None:
            ranked = []
            for owner, job_ids in self._waiting.items():
                begin = self._had[owner]
                for job_id in job_ids:
                    ranked.append((begin, self._turns.get(owner, 0), job_id))
                    begin += self._work[job_id]
            self._order = [job_id for _, _, job_id in sorted(ranked)]
            self._positions = {job_id: i for i, job_id in enumerate(self._order, start=1)}
        return self._order

    def position(self, job_id: str) -> int:
        """1 for the next job."""
        self.order()
        return self._positions[job_id]
