"""Figures and columns of the planner's tables."""

import math
from collections.abc import Sequence


def aligned(lines: Sequence[Sequence[str]], text_columns: Sequence[str]) -> list[str]:
    """Lines of cells in columns as wide as their widest cell; words to the left, figures right.

    Args:
        lines: the names of the columns, then the rows.
        text_columns: names of those that hold words.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    forms = [
        f"{'<' if name in text_columns else '>'}{width}"
        for name, width in zip(lines[0], widths, strict=True)
    ]
    return [
        "  ".join(f"{cell:{form}}" for cell, form in zip(line, forms, strict=True)).rstrip()
        for line in lines
    ]


def figure(value: float) -> str:
    """Three digits that say something, more before the point if there are more."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def span(low: float, high: float) -> str:
    """From the least to the most; one figure where they come to the same, `-` where none is."""
    if math.isinf(high):
        return "-"
    first, last = figure(low), figure(high)
    return first if first == last else f"{first}..{last}"
