"""The time by which jobs expire: the wall clock's, but a clock that jumps ahead deletes nothing."""

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

JUMP_SECONDS = 300.0
"""What the wall clock may be ahead of the steady one and is still believed at once."""

HOLD_SECONDS = 3600.0
"""How long a clock that jumped ahead must stay there until it is believed: a clock that is wrong
has been put right by then, or somebody has seen that it is."""


def steady_seconds() -> float:
    """Seconds that pass whatever is done to the wall clock, those of a machine asleep included."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class ExpiryClock:
    """Unix seconds that never go faster than time does, until a jump has lasted for an hour."""

    def __init__(
        self,
        *,
        last_seen: float | None = None,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady_seconds,
    ):
        """Starts at the wall clock's time, or at `last_seen` if the clock is far ahead of that.

        Args:
            last_seen: the latest time that was written down before the start.
            wall: the clock that may jump.
            steady: the one that does not.
        """
        self._wall, self._steady = wall, steady
        self._time, self._read_at = last_seen if last_seen is not None else wall(), steady()
        self._ahead_since: float | None = None
        self._is_start = True

    def now(self) -> float:
        """The time to compare `expires_at` with."""
        wall, steady = self._wall(), self._steady()
        trusted = self._time + steady - self._read_at
        if wall - trusted > JUMP_SECONDS:
            if self._ahead_since is None:
                self._ahead_since = steady
                logger.log(
                    logging.INFO if self._is_start else logging.WARNING,
                    "the clock is %.0f s ahead of what was seen last; nothing expires by that for "
                    "an hour, and then it is believed",
                    wall - trusted,
                )
            if steady - self._ahead_since < HOLD_SECONDS:
                return trusted
        self._time, self._read_at, self._ahead_since = wall, steady, None
        self._is_start = False
        return wall
