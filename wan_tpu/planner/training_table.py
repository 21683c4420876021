"""Rows of a training's plan as text for people and as JSON for programs."""

from collections.abc import Sequence
from typing import Any

from wan_tpu.planner.figures import aligned, figure, span
from wan_tpu.planner.hardware import GIB
from wan_tpu.planner.training import TrainingJob, TrainingPlan

_COLUMNS = (
    "layout", "fits", "resident GiB", "temporary GiB", "peak GiB", "step s", "compute", "memory",
    "exposed", "hidden", "MFU %", "hours",
)  # fmt: skip
_TEXT_COLUMNS = ("layout", "fits")


def format_training_table(job: TrainingJob, rows: Sequence[TrainingPlan]) -> str:
    """The table: a line per layout, best first; what stays, what does not fit, the choice.

    Args:
        job: what was planned.
        rows: sorted, as `TrainingPlanner.plan` returns them.
    """
    cells = [_COLUMNS, *map(_cells, rows)]
    best = next((row for row in rows if not row.misfit), None)
    choice = "none of these layouts fits" if best is None else str(best.layout)
    table = aligned(cells, _TEXT_COLUMNS)
    lines = [*_title(job), "", *table, "", *_legend(job), *_files(rows), *_details(rows)]
    return "\n".join([*lines, f"use: {choice}"]) + "\n"


def training_to_json(job: TrainingJob, rows: Sequence[TrainingPlan]) -> dict[str, Any]:
    """Everything that the table says and what it was computed from."""
    config, geometry = job.config, job.geometry
    return {
        "model": job.description.name,
        "trains": config.train.trains,
        "batch": config.train.batch,
        "accumulate": config.train.accumulate,
        "steps": config.train.steps,
        "remat": config.machine.remat,
        "topology": job.where.name,
        "devices": job.where.num_devices,
        "width": geometry.width,
        "height": geometry.height,
        "num_frames": geometry.num_frames,
        "tokens": geometry.num_tokens,
        "layouts": [row.to_json() for row in rows],
        "best": next((str(row.layout) for row in rows if not row.misfit), None),
    }


def _title(job: TrainingJob) -> list[str]:
    config, geometry, where = job.config, job.geometry, job.where
    return [
        f"{job.description.name}, trains {config.train.trains}, batch {config.train.batch} in "
        f"{config.train.accumulate} parts, remat {config.machine.remat}, {geometry.width}x"
        f"{geometry.height}, {geometry.num_frames} frames, {geometry.num_tokens} tokens",
        f"{where.name}: {where.num_devices} devices on {where.num_hosts} hosts, compiled for "
        f"{where.topology_name}",
    ]


def _cells(row: TrainingPlan) -> list[str]:
    fits = "no" if row.misfit else "yes"
    cells = [str(row.layout), fits, f"{sum(row.resident.values()) / GIB:.2f}"]
    if row.seconds is None:
        return [*cells, *["-"] * (len(_COLUMNS) - len(cells))]
    return [
        *cells,
        f"{row.facts.temporary_bytes / GIB:.2f}",
        f"{row.peak_bytes / GIB:.2f}",
        span(*row.range),
        figure(row.seconds.compute),
        figure(row.seconds.memory),
        figure(row.seconds.exposed),
        figure(row.seconds.hidden),
        span(*(100 * share for share in row.mfu)),
        span(*row.hours),
    ]


def _legend(job: TrainingJob) -> list[str]:
    chip = job.where.chip
    return [
        "GiB a device, of a step: what stays, what it needs besides, the most at once",
        "step s: from the peaks (compute + memory + exposed) to the compiler's own count of "
        "everything but attention; exposed and hidden are of the links",
        "MFU %: the model's own arithmetic, without what is computed twice or padded, over the "
        "peak of all devices",
        f"hours: of {job.config.train.steps} steps; compiling, checkpoints and samples come on top",
        f"a device has {chip.hbm_bytes / GIB:.2f} GiB, {chip.bf16_flops / 1e12:.0f} TFLOP/s; "
        "rules: wan_tpu/planner/estimate.py",
        "",
    ]


def _files(rows: Sequence[TrainingPlan]) -> list[str]:
    if not rows:
        return []
    row = rows[0]
    sizes = f"{_bytes(row.checkpoint_bytes)} a checkpoint, {_bytes(row.result_bytes)} the result"
    return [f"on the disk: {sizes}", ""]


def _details(rows: Sequence[TrainingPlan]) -> list[str]:
    """What stays by name, what does not fit, what was not counted."""
    lines = []
    for row in rows:
        parts = [f"{name} {figure(size / GIB)}" for name, size in row.resident.items()]
        lines.append(f"{row.layout}, resident GiB: {', '.join(parts)}")
        if row.misfit:
            lines.append(f"{row.layout} does not fit: {row.misfit}")
        lines += [
            f"{row.layout}: attention of {shape.queries} x {shape.keys} tokens goes by its FLOPs "
            f"at peak, which is less than it takes: {reason}"
            for shape, reason in row.uncounted.items()
        ]
        if row.facts.costs is not None and row.facts.costs.unknown_loops:
            loops = ", ".join(row.facts.costs.unknown_loops)
            lines.append(f"{row.layout}: loops counted once, length unknown: {loops}")
    return [*lines, ""]


def _bytes(size: int) -> str:
    """Decimal, as disks are sold."""
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"
