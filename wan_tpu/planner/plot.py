"""One picture of a plan: where a step's time goes, and memory against the device's limit."""

import os
import pathlib
from collections.abc import Sequence

from wan_tpu.errors import MissingPackageError
from wan_tpu.pipeline.video_file import reporting
from wan_tpu.planner.hardware import GIB
from wan_tpu.planner.rows import Job, LayoutPlan
from wan_tpu.planner.table import layout_name

_PARTS = (("compute", "#3b6ea5"), ("memory", "#d08c2c"), ("links", "#8a4f9e"))


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
    """Writes the picture as a PNG.

    Raises:
        MissingPackageError: matplotlib is not installed.
        OutputError: the file cannot be written.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    figure = Figure(figsize=(11, 1.6 + 0.42 * len(rows)), layout="constrained")
    times, memory = figure.subplots(1, 2, sharey=True)
    names = [layout_name(row) for row in reversed(rows)]
    shown = list(reversed(rows))
    left = [0.0] * len(shown)
    for part, colour in _PARTS:
        widths = [_seconds(row, part) for row in shown]
        times.barh(names, widths, left=left, color=colour, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    times.set_xlabel("seconds per denoising step")
    times.legend(loc="upper right")
    colours = ["#b03a2e" if row.misfits else "#5b8c5a" for row in shown]
    memory.barh(names, [row.peak_bytes / GIB for row in shown], color=colours)
    memory.axvline(job.where.chip.hbm_bytes / GIB, color="black", linestyle="--", label="limit")
    memory.set_xlabel("peak GiB per device, everything resident")
    memory.legend(loc="upper right")
    size = f"{job.geometry.width}x{job.geometry.height}, {job.geometry.num_frames} frames"
    figure.suptitle(f"{job.description.name} on {job.where.name}, {size}")
    partial = path.with_name(f".wan-tpu-{os.getpid()}.partial")
    with reporting(path):
        try:
            figure.savefig(partial, format="png", dpi=120)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _seconds(row: LayoutPlan, part: str) -> float:
    step = row.stages.get("step")
    return 0.0 if step is None or step.seconds is None else getattr(step.seconds, part)
