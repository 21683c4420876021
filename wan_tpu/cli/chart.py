"""A chart in the terminal: a column a frame, in eighths of a line."""

import itertools
import math
from collections.abc import Sequence

BLOCKS, PLAIN_BLOCKS = " ▁▂▃▄▅▆▇█", "        #"
"""By eighths; the second where the terminal's encoding has no blocks."""


def chart(values: Sequence[float], *, width: int, height: int, encoding: str = "utf-8") -> str:
    """Lines of columns, the highest and the lowest value beside the first and the last line.

    Args:
        values: at least one; an infinite one reaches above every other.
        width: columns at most; of several values in one column the lowest is shown.
        height: lines.
        encoding: of what the chart is written to.

    Returns:
        Text that ends with a line break.
    """
    columns = _columns(values, width)
    finite = [value for value in columns if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    try:
        BLOCKS.encode(encoding)
        blocks = BLOCKS
    except UnicodeEncodeError:
        blocks = PLAIN_BLOCKS
    levels = [_level(value, low, high, height) for value in columns]
    labels = {0: _label(max(columns)), height - 1: _label(min(columns))}
    lines = []
    for row in range(height):
        begin = 8 * (height - 1 - row)
        bars = "".join(blocks[min(max(level - begin, 0), 8)] for level in levels)
        lines.append(f"{labels.get(row, ''):>8} |{bars}".rstrip() + "\n")
    return "".join(lines)


def _columns(values: Sequence[float], width: int) -> list[float]:
    count = min(len(values), width)
    edges = [index * len(values) // count for index in range(count + 1)]
    return [min(values[begin:end]) for begin, end in itertools.pairwise(edges)]


def _level(value: float, low: float, high: float, height: int) -> int:
    """Eighths of a line, at least one, so that each frame is seen."""
    if math.isinf(value):
        return 8 * height
    share = (value - low) / (high - low) if high > low else 1.0
    return 1 + round(share * (8 * height - 2))


def _label(value: float) -> str:
    return "equal" if math.isinf(value) else f"{value:.4g}"
