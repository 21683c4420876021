"""Who is next: first come, first served, and keys take turns."""

import bisect


class FairQueue:
    """Ids of waiting jobs. Each owner's jobs keep their order; owners alternate."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[str]] = {}
        self._turns: dict[str, int] = {}
        self._turn = 0
        self._order: list[str] | None = None
        self._positions: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def count(self, owner: str) -> int:
        """Waiting jobs of an owner."""
        return len(self._waiting.get(owner, ()))

    def add(self, owner: str, job_id: str) -> None:
        """Puts a job where its age belongs: one that comes back goes to the front."""
        bisect.insort(self._waiting.setdefault(owner, []), job_id)
        self._order = None

    def remove(self, owner: str, job_id: str) -> None:
        """Takes a job out."""
        self._waiting[owner].remove(job_id)
        if not self._waiting[owner]:
            del self._waiting[owner]
        self._order = None

    def served(self, owner: str) -> None:
        """Notes that an owner had its turn."""
        self._turn += 1
        self._turns[owner] = self._turn
        self._order = None

    def order(self) -> list[str]:
        """All ids, next one first: in each round one of every owner, longest unserved first."""
        if self._order is None:
            ranked = [
                (round_, self._turns.get(owner, 0), job_id)
                for owner, job_ids in self._waiting.items()
                for round_, job_id in enumerate(job_ids)
            ]
            self._order = [job_id for _, _, job_id in sorted(ranked)]
            self._positions = {job_id: i for i, job_id in enumerate(self._order, start=1)}
        return self._order

    def position(self, job_id: str) -> int:
        """1 for the next job."""
        self.order()
        return self._positions[job_id]
