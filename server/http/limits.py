"""How much one key may ask for: requests a second."""

import time


class RequestRate:
    """A bucket of tokens for each owner, refilled steadily; it holds one second's worth."""

    def __init__(self, per_second: float):
        self._per_second = per_second
        self._capacity = max(per_second, 1.0)
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, at what time

    def take(self, owner: str) -> float:
        """Takes a token; returns 0, or the seconds until there is one."""
        now = time.monotonic()
        tokens, before = self._buckets.get(owner, (self._capacity, now))
        tokens = min(self._capacity, tokens + (now - before) * self._per_second)
        if tokens < 1:
            self._buckets[owner] = (tokens, now)
            return (1 - tokens) / self._per_second
        self._buckets[owner] = (tokens - 1, now)
        return 0.0
