"""Rows as text for people and as JSON for programs."""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from wan_tpu.media import ROLES
from wan_tpu.planner.adapters import AdapterSwitch
from wan_tpu.planner.figures import aligned, figure, span
from wan_tpu.planner.hardware import GIB
from wan_tpu.planner.job import Job
from wan_tpu.planner.program import ProgramCosts
from wan_tpu.planner.rows import LayoutPlan, StagePlan
from wan_tpu.step_cache import Blocks

_COLUMNS = (
    "layout", "peak GiB", "step GiB", "fits", "PFLOP", "HBM GB", "plain GB", "link GB", "attn Gcyc",
    "step s", "MFU %", "compute", "memory", "exposed", "hidden", "video s",
)  # fmt: skip
_TEXT_COLUMNS = ("layout", "fits")


def format_table(
    job: Job,
    rows: Sequence[LayoutPlan],
    *,
    explain: int = 0,
    switch: AdapterSwitch | None = None,
) -> str:
    """The table: a line per layout, best first; collectives, what does not fit, the choice.

    Args:
        job: what was planned.
        rows: sorted, as `Planner.plan` returns them.
        explain: this many kinds of operation and sources per stage of the best row.
        switch: of an adapter on the best row; None says nothing of it.
    """
    lines = [_title(job), "", *aligned([_COLUMNS, *map(_cells, rows)], _TEXT_COLUMNS)]
    lines += ["", *_legend(job), *_resident(rows), *_collectives(rows), *_failures(rows)]
    if explain and rows:
        lines += _explain(rows[0], explain)
    lines += [] if switch is None else [str(switch)]
    lines.append(_choice(rows))
    return "\n".join(lines) + "\n"


def to_json(job: Job, rows: Sequence[LayoutPlan], *, operations: bool = False) -> dict[str, Any]:
    """Everything that the table says and what it was computed from.

    Args:
        job: what was planned.
        rows: sorted.
        operations: also every operation of every program, megabytes of them.
    """
    chip = job.where.chip
    return {
        "model": job.description.name,
        "topology": job.where.name,
        "libtpu_topology": job.where.topology_name,
        "devices": job.where.num_devices,
        "hosts": job.where.num_hosts,
        "width": job.geometry.width,
        "height": job.geometry.height,
        "num_frames": job.geometry.num_frames,
        "tokens": job.geometry.num_tokens,
        "pictures": sorted(job.way.roles),
        "num_inference_steps": job.request.num_inference_steps,
        "fast": job.request.fast,
        "step_cache": None if job.cache is None else str(job.cache),
        "step_plan": job.step_letters,
        "steps_by_transformer": dict(collections.Counter(s.component for s in job.steps)),
        "dtype": job.dtype,
        "quantize": job.quantize,
        "attention": job.attention,
        "chip": {
            "name": chip.name,
            "bf16_flops": chip.bf16_flops,
            "int8_flops": chip.int8_flops,
            "hbm_bytes": chip.hbm_bytes,
            "hbm_bandwidth": chip.hbm_bandwidth,
            "link_bandwidth": chip.link_bandwidth,
            "clock_hz": chip.clock_hz,
        },
        "layouts": [_row_json(row, operations) for row in rows],
        "best": next((str(row.layout) for row in rows if not row.misfits), None),
    }


def _row_json(row: LayoutPlan, operations: bool) -> dict[str, Any]:
    return {
        "layout": str(row.layout),
        "sequence_parallel": row.layout.sequence_parallel,
        "weights": row.layout.weights,
        "fits": not row.misfits,
        "misfits": row.misfits,
        "peak_bytes": row.peak_bytes,
        "limit_bytes": row.limit_bytes,
        "step_seconds": _finite(row.step_range),
        "video_seconds": _finite(row.video_range),
        "mfu": _finite(row.mfu),
        "model_flops_of_a_step": row.model_flops,
        "resident_bytes": row.resident.parts,
        "kernels": [
            {
                "heads": shape.heads,
                "queries": shape.queries,
                "keys": shape.keys,
                "head_dim": shape.head_dim,
                "parts": {
                    name: {"bundles": bundles, "times": times}
                    for name, (bundles, times) in count.parts.items()
                },
                "cycles_per_head": count.per_head,
            }
            for shape, count in row.kernels.items()
        ],
        "kernels_not_counted": [
            dataclasses.asdict(shape) | {"reason": reason}
            for shape, reason in row.uncounted.items()
        ],
        "stages": {name: _stage_json(plan, operations) for name, plan in row.stages.items()},
    }


def _stage_json(plan: StagePlan, operations: bool) -> dict[str, Any]:
    facts = plan.facts
    result: dict[str, Any] = {
        "runs_per_video": plan.runs,
        "argument_bytes": facts.argument_bytes,
        "output_bytes": facts.output_bytes,
        "temporary_bytes": facts.temporary_bytes,
        "peak_bytes": facts.peak_bytes,
        "served_bytes": plan.served_bytes,
        "compile_seconds": round(facts.compile_seconds, 2),
        "failure": facts.failure or None,
    }
    if facts.costs is None or plan.seconds is None:
        return result
    seconds = plan.seconds
    result |= {
        "flops": facts.costs.total("flops"),
        "int8_flops": facts.costs.total("int8_flops"),
        "hbm_bytes": facts.costs.total("hbm_bytes"),
        "hbm_bytes_plain_rule": facts.costs.total("plain_bytes"),
        "link_bytes": facts.costs.total("link_bytes"),
        "collectives": facts.costs.collectives_by_kind(),
        "unknown_loops": list(facts.costs.unknown_loops),
        "seconds": seconds.total,
        "compute_seconds": seconds.compute,
        "attention_seconds": seconds.attention,
        "memory_seconds": seconds.memory,
        "exposed_link_seconds": seconds.exposed,
        "hidden_link_seconds": seconds.hidden,
        "compiler_seconds_without_attention": seconds.compiler,
        "seconds_of_other_kernels": seconds.kernels,
        "seconds_by_compiler": seconds.by_compiler,
        "by_kind": facts.costs.breakdown("kind"),
        "by_source": facts.costs.breakdown("source")[:40],
    }
    if operations:
        result["operations"] = [operation.to_json() for operation in facts.costs.operations]
    return result


def _steps(job: Job) -> str:
    """How many steps, by transformer where several take turns, and with which pictures."""
    counts = collections.Counter(step.component for step in job.steps)
    by_transformer = f" ({' + '.join(map(str, counts.values()))})" if len(counts) > 1 else ""
    pictures = "".join(f", with {role}" for role in ROLES if role in job.way.roles)
    return f"{len(job.steps)} steps{by_transformer}{_cache(job)}{pictures}"


def _cache(job: Job) -> str:
    """How many of the steps a step cache computes; where it decides as it runs, all are counted."""
    if job.cache is None:
        return ""
    if Blocks.OPEN.value in job.step_letters:
        return f", {job.cache} (at most: it decides as it runs)"
    return f", {job.step_letters.count(Blocks.COMPUTED.value)} computed by {job.cache}"


def _title(job: Job) -> str:
    where, geometry = job.where, job.geometry
    return (
        f"{job.description.name}, {geometry.width}x{geometry.height}, {geometry.num_frames} frames "
        f"({geometry.num_tokens} tokens), {_steps(job)}, "
        f"{job.dtype}{f' and {job.quantize}' if job.quantize else ''}, "
        f"on {where.name}: {where.num_devices} x {where.chip.device_kind}, hosts: {where.num_hosts}"
    )


def _cells(row: LayoutPlan) -> list[str]:
    values = [str(row.layout), f"{row.peak_bytes / GIB:.2f}", "-", _fits(row)]
    step = row.stages.get("step")
    if step is None or step.facts.costs is None or step.seconds is None:
        values += ["-"] * 11
    else:
        values[2] = f"{step.facts.peak_bytes / GIB:.2f}"
        costs, seconds = step.facts.costs, step.seconds
        values += [
            figure(costs.total("flops") / 1e15),
            figure(costs.total("hbm_bytes") / 1e9),
            figure(costs.total("plain_bytes") / 1e9),
            figure(costs.total("link_bytes") / 1e9),
            _attention_cycles(row, costs),
            span(*row.step_range),
            "..".join(dict.fromkeys(f"{100 * share:.0f}" for share in row.mfu)),
            figure(seconds.compute),
            figure(seconds.memory),
            figure(round(seconds.exposed, 5)),
            figure(round(seconds.hidden, 5)),
        ]
    return [*values, span(*row.video_range)]


def _attention_cycles(row: LayoutPlan, costs: ProgramCosts) -> str:
    """Of a step, in thousand millions; nothing where a kernel was not counted."""
    kernels = [o for o in costs.operations if o.attention is not None]
    if any(o.attention in row.uncounted for o in kernels):
        return "-"
    cycles = sum(
        o.times * o.attention.heads * row.kernels[o.attention].per_head
        for o in kernels
        if o.attention is not None
    )
    return figure(cycles / 1e9)


def _fits(row: LayoutPlan) -> str:
    return "yes" if not row.misfits else f"no: {row.misfits[0]}"


def _legend(job: Job) -> list[str]:
    chip = job.where.chip
    return [
        "per device: peak GiB, of the stage that needs most beside what is resident while it runs;",
        "step GiB of the step alone; of one step: PFLOP, HBM bytes (slices count as slices), plain",
        "HBM bytes (whole operands), bytes sent over links, cycles of attention",
        "step s, video s: by the peaks (compute + memory + exposed; orders the rows) and with the",
        "compiler's own count of everything but attention; exposed, hidden: of the links, what a",
        "step waits for and what runs behind it; MFU %: the model's own arithmetic, nothing padded",
        "or computed twice, over the peak of all devices",
        f"a device has {chip.hbm_bytes / GIB:.2f} GiB, {chip.bf16_flops / 1e12:.0f} TFLOP/s "
        f"({chip.int8_flops / 1e12:.0f} of int8), "
        f"{chip.hbm_bandwidth / 1e9:.0f} GB/s, {chip.link_bandwidth / 1e9:.0f} GB/s a link and "
        "direction; rules: wan_tpu/planner/estimate.py",
        f"video s: the stages {', '.join(job.stages)}, as often as a video runs them",
        "",
    ]


def _resident(rows: Sequence[LayoutPlan]) -> list[str]:
    lines = ["resident on a device, GiB:"]
    width = max((len(str(row.layout)) for row in rows), default=0)
    for row in rows:
        parts = [f"{name} {size / GIB:.2f}" for name, size in row.resident.parts.items() if size]
        lines.append(f"  {row.layout!s:<{width}}  {', '.join(parts)}")
    return [*lines, ""] if len(lines) > 1 else []


def _collectives(rows: Sequence[LayoutPlan]) -> list[str]:
    lines = ["collectives of a step, runs and GB sent per device:"]
    width = max((len(str(row.layout)) for row in rows), default=0)
    for row in rows:
        step = row.stages.get("step")
        if step is None or step.facts.costs is None:
            continue
        kinds: Mapping[str, Mapping[str, int]] = step.facts.costs.collectives_by_kind()
        parts = [
            f"{kind} {k['runs']} x, {k['link_bytes'] / 1e9:.2f}"
            for kind, k in sorted(kinds.items())
        ]
        lines.append(f"  {row.layout!s:<{width}}  {'; '.join(parts) or 'none'}")
    return [*lines, ""] if len(lines) > 1 else []


def _failures(rows: Sequence[LayoutPlan]) -> list[str]:
    """What does not fit, what was not counted; a line for each reason of a layout."""
    lines = []
    for row in rows:
        stages: dict[str, list[str]] = {}
        for name, plan in row.stages.items():
            for reason in _reasons(name, plan, row):
                stages.setdefault(reason, []).append(name)
        lines += [f"{row.layout}, {', '.join(names)}: {reason}" for reason, names in stages.items()]
        lines += [
            f"{row.layout}: attention of {shape.queries} x {shape.keys} tokens goes by its FLOPs "
            f"at peak, which is less than it takes: {reason}"
            for shape, reason in row.uncounted.items()
        ]
        step = row.stages.get("step")
        if step is not None and step.seconds is not None and step.seconds.kernels:
            seconds = figure(step.seconds.kernels)
            lines.append(
                f"{row.layout}: {seconds} s of a step are other kernels, by the peaks in both"
            )
    return [*lines, ""] if lines else []


def _reasons(name: str, plan: StagePlan, row: LayoutPlan) -> list[str]:
    reasons = []
    if plan.facts.failure:
        reasons.append(f"not possible: {plan.facts.failure}")
    elif name in row.misfits:
        needed, there = plan.served_bytes / GIB, row.limit_bytes / GIB
        reasons.append(f"{needed:.2f} GiB of {there:.2f}")
    if plan.facts.costs is not None and plan.facts.costs.unknown_loops:
        loops = ", ".join(plan.facts.costs.unknown_loops)
        reasons.append(f"loops counted once, length unknown: {loops}")
    return reasons


def _explain(row: LayoutPlan, count: int) -> list[str]:
    lines = []
    for name, plan in row.stages.items():
        if plan.facts.costs is None:
            continue
        for key in ("kind", "source"):
            lines.append(
                f"{row.layout} {name}, by {key}: GB of HBM (plain), TFLOP, GB of links, runs"
            )
            for group in plan.facts.costs.breakdown(key)[:count]:
                sizes = (
                    f"{group['hbm_bytes'] / 1e9:9.2f} ({group['plain_bytes'] / 1e9:.2f})",
                    figure(group["flops"] / 1e12),
                    f"{group['link_bytes'] / 1e9:.2f}",
                    f"{group['runs']}",
                )
                figures = f"{sizes[0]:>20} {sizes[1]:>9} {sizes[2]:>8} {sizes[3]:>7}"
                lines.append(f"  {figures}  {group[key][-90:]}")
            lines.append("")
    return lines


def _choice(rows: Sequence[LayoutPlan]) -> str:
    best = next((row for row in rows if not row.misfits), None)
    if best is None:
        return "use: none of these layouts fits"
    return f"use: {best.layout}"


def _finite(values: tuple[float, float]) -> list[float] | None:
    """From the least to the most; None of a step that does not compile."""
    return list(values) if all(math.isfinite(v) and v for v in values) else None
