"""When the jobs of one model will be finished: several slices take them in turn. An estimate."""

import heapq
from collections.abc import Iterable, Sequence


def ends(
    left: Sequence[float | None], totals: Iterable[float | None], slices: int
) -> list[float | None]:
    """Seconds until each waiting job is finished; None from where nothing is known on.

    Args:
        left: seconds of each running job; None where nothing is known.
        totals: seconds that each waiting job takes, the next one first; None likewise.
        slices: that make this model's videos.
    """
    if not slices or None in left:
        return [None for _ in totals]
    free = [seconds for seconds in left if seconds is not None]
    free += [0.0] * (slices - len(free))
    heapq.heapify(free)
    found: list[float | None] = []
    is_known = True
    for total in totals:
        is_known = is_known and total is not None
        if not is_known or total is None:
            found.append(None)
            continue
        end = heapq.heapreplace(free, free[0] + total) + total
        found.append(end)
    return found
