"""One picture of a plan: where a step's time goes, and memory against the device's limit."""

import os
import pathlib
from collections.abc import Sequence
from typing import Any

from wan_tpu.errors import MissingPackageError
from wan_tpu.pipeline.video_file import reporting
from wan_tpu.planner.figures import span
from wan_tpu.planner.hardware import GIB
from wan_tpu.planner.job import Job
from wan_tpu.planner.rows import LayoutPlan

_PARTS = (("compute", "#3b6ea5"), ("memory", "#d08c2c"), ("exposed", "#8a4f9e"))
_FIT_COLOURS = {"fits": "#5b8c5a", "does not fit": "#b03a2e"}

_INCHES_AROUND, _INCHES_PER_ROW = 2.3, 0.42
_TIMES_AXIS, _MEMORY_AXIS = 1.5, 1.25
"""Length of an axis, in longest bars: the figures stand at the ends of the bars."""


def require_matplotlib() -> None:
    """Says how to get matplotlib.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise MissingPackageError("a plot needs matplotlib: pip install 'wan_tpu[plot]'") from None


def write_plot(path: pathlib.Path, job: Job, rows: Sequence[LayoutPlan]) -> None:
    """Writes the picture as a PNG, the best row at the top.

    Raises:
        MissingPackageError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    require_matplotlib()
    figure = draw_plot(job, rows)
    partial = path.with_name(f".wan-tpu-{os.getpid()}.partial")
    with reporting(path):
        try:
            figure.savefig(partial, format="png", dpi=120)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def draw_plot(job: Job, rows: Sequence[LayoutPlan]) -> Any:
    """The picture as a matplotlib figure."""
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    height = _INCHES_AROUND + _INCHES_PER_ROW * len(rows)
    figure: Any = Figure(figsize=(11, height), layout="constrained")
    times, memory = figure.subplots(1, 2, sharey=True)
    shown = list(reversed(rows))
    _draw_times(times, shown)
    _draw_memory(memory, shown, job.where.chip.hbm_bytes / GIB)
    for axes, place in ((times, "outside lower left"), (memory, "outside lower right")):
        figure.legend(handles=axes.get_legend_handles_labels()[0], loc=place, ncols=len(_PARTS))
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"estimated, not measured: {job.description.name} on {job.where.name}, "
        f"{job.geometry.width}x{job.geometry.height}, {job.geometry.num_frames} frames"
    )
    return figure


def _draw_times(axes: Any, rows: Sequence[LayoutPlan]) -> None:
    """Bars of compute, memory and exposed links, one after the other, where it compiles."""
    names = [str(row.layout) for row in rows]
    totals = [0.0] * len(rows)
    for part, colour in _PARTS:
        widths = [_seconds(row, part) for row in rows]
        bars = axes.barh(names, widths, left=totals, color=colour, label=part)
        totals = [a + b for a, b in zip(totals, widths, strict=True)]
    figures = [span(*row.step_range) for row in rows]
    axes.bar_label(bars, ["" if f == "-" else f"{f} s" for f in figures], padding=4)
    axes.set_xlim(0, _TIMES_AXIS * max(totals) or 1)
    axes.set_ylim(-0.75, len(rows) - 0.25)
    axes.set_xlabel("seconds of a denoising step: by the peaks .. by the compiler's count")


def _draw_memory(axes: Any, rows: Sequence[LayoutPlan], limit_gib: float) -> None:
    """Bars of the costliest stage with everything resident, and the limit."""
    sizes = [row.peak_bytes / GIB for row in rows]
    labels = ["does not fit" if row.misfits else "fits" for row in rows]
    colours = [_FIT_COLOURS[label] for label in labels]
    first = [label if labels.index(label) == i else "" for i, label in enumerate(labels)]
    bars = axes.barh([str(row.layout) for row in rows], sizes, color=colours, label=first)
    # On white: where a figure meets the line of the limit it stays readable.
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.bar_label(bars, [f"{size:.2f}" for size in sizes], padding=4, bbox=white)
    axes.axvline(limit_gib, color="black", linestyle="--", label=f"a device's {limit_gib:.2f} GiB")
    axes.set_xlim(0, _MEMORY_AXIS * max(*sizes, limit_gib))
    axes.set_xlabel("peak GiB per device, everything resident")


def _seconds(row: LayoutPlan, part: str) -> float:
    step = row.stages.get("step")
    return 0.0 if step is None or step.seconds is None else getattr(step.seconds, part)
