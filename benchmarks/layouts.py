"""what each layout costs: planned for a slice, or with --run measured on the devices here

Without `--run` this is `wan-tpu plan`: same options, same table, same JSON. With `--run` it makes
videos: compiling, the first run and the steady state are timed apart.
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

from wan_tpu.cli import plan
from wan_tpu.cli.options import positive_int
from wan_tpu.errors import InputError
from wan_tpu.planner import GIB
from wan_tpu.sharding.layout import Layout

MIN_REPEATS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m benchmarks layouts`: those of `wan-tpu plan` and these."""
    plan.add_plan_arguments(parser, topology_required=False)
    parser.set_defaults(model=None, dtype=None)
    group = parser.add_argument_group("measuring (wan-tiny by default)")
    group.add_argument("--run", action="store_true", help="make videos on the devices here")
    group.add_argument(
        "--host-devices",
        type=positive_int,
        metavar="N",
        help="N virtual CPU devices, no accelerator",
    )
    group.add_argument(
        "--repeats", type=positive_int, default=MIN_REPEATS,
        help="runs of the steady state, at least 5 (default: %(default)s)",
    )  # fmt: skip


def run(parsed: argparse.Namespace) -> int:
    """Plans, or measures with `--run`."""
    if not parsed.run:
        if parsed.topology is None:
            raise InputError(
                "say --topology v6e-8 (or another type) to plan, or --run to measure here"
            )
        parsed.model = parsed.model or "wan2.1-t2v-14b"
        parsed.dtype = parsed.dtype or "bfloat16"
        return plan.run(parsed)
    if parsed.topology is not None:
        raise InputError("--run measures the devices here; --topology is for planning")
    if parsed.repeats < MIN_REPEATS:
        raise InputError(f"--repeats must be at least {MIN_REPEATS}, got {parsed.repeats}")

    from wan_tpu import runtime
    from wan_tpu.pipeline.model import parse_dtype
    from wan_tpu.pipeline.whole_file import write_json_atomically

    if parsed.dtype is not None:
        parse_dtype(parsed.dtype)

    runtime.start(host_devices=parsed.host_devices)
    rows = measure(parsed)
    if parsed.json is not None:
        write_json_atomically(pathlib.Path(parsed.json), to_json(parsed, rows))
    sys.stdout.write(format_table(parsed, rows))
    return 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One layout on the devices here; seconds are wall clock.

    Attributes:
        layout: the split.
        num_inference_steps: of each video.
        load_seconds: reading and placing the weights.
        compile_seconds: of every program of the request.
        first_seconds: the first video after compiling.
        video_seconds: of each video of the steady state.
        step_seconds: mean of a denoising step, for each of those videos.
        peak_bytes: most device memory in use so far; None where the platform does not tell.
        metadata: of the last video: versions, attention, device kind.
    """

    layout: Layout
    num_inference_steps: int
    load_seconds: float
    compile_seconds: float
    first_seconds: float
    video_seconds: tuple[float, ...]
    step_seconds: tuple[float, ...]
    peak_bytes: int | None
    metadata: dict[str, Any]


def measure(parsed: argparse.Namespace) -> list[Measurement]:
    """Measures every layout, fastest video first.

    Raises:
        LayoutError: a layout is not for the number of devices here; nothing was run.
    """
    import jax

    devices = jax.devices()
    layouts = plan.read_layouts(parsed, len(devices))
    for layout in layouts:
        layout.require_devices(len(devices))
    rows = []
    for layout in layouts:
        sys.stderr.write(f"measuring {layout}\n")
        rows.append(_measure_layout(parsed, layout, devices))
    return sorted(rows, key=lambda row: statistics.median(row.video_seconds))


def _measure_layout(
    parsed: argparse.Namespace, layout: Layout, devices: Sequence[Any]
) -> Measurement:
    from benchmarks.pictures import with_files
    from wan_tpu.pipeline.video_pipeline import VideoPipeline

    request = plan.read_request(parsed, "a red circle moving right on a black background")
    started = time.perf_counter()
    pipeline = VideoPipeline.from_pretrained(
        parsed.model or "wan-tiny",
        layout=layout,
        devices=devices,
        dtype=parsed.dtype,
        attention=parsed.attention,
    )
    request, media = with_files(request, pipeline.model.description)
    loaded = time.perf_counter()
    pipeline.warm_up(request)
    compiled = time.perf_counter()
    result = pipeline(request, media=media)
    first = time.perf_counter() - compiled
    videos, steps = [], []
    for _ in range(parsed.repeats):
        begun = time.perf_counter()
        result = pipeline(request, media=media)
        videos.append(time.perf_counter() - begun)
        steps.append(result.metadata["seconds"]["denoise"] / sum(result.metadata["steps"].values()))
    memory = devices[0].memory_stats() or {}
    return Measurement(
        layout=layout,
        num_inference_steps=result.metadata["request"]["num_inference_steps"],
        load_seconds=loaded - started,
        compile_seconds=compiled - loaded,
        first_seconds=first,
        video_seconds=tuple(videos),
        step_seconds=tuple(steps),
        peak_bytes=memory.get("peak_bytes_in_use"),
        metadata=result.metadata,
    )


_COLUMNS = (
    ("layout", "<22"), ("peak GiB", ">9"), ("load s", ">7"), ("compile s", ">10"),
    ("first s", ">8"), ("step s", ">9"), ("spread", ">9"), ("video s", ">9"), ("spread", ">9"),
)  # fmt: skip


def format_table(parsed: argparse.Namespace, rows: Sequence[Measurement]) -> str:
    """A line per layout, fastest first, then the layout to use."""
    story = rows[0].metadata
    title = (
        f"{story['model']}, {rows[0].num_inference_steps} steps, {story['dtype']}, attention "
        f"{story['attention']}, on {story['num_devices']} x {story['device_kind']}, "
        f"median and spread (largest less smallest) of {parsed.repeats} runs"
    )
    lines = [title, "", "  ".join(f"{name:{form}}" for name, form in _COLUMNS)]
    for row in rows:
        memory = "-" if row.peak_bytes is None else f"{row.peak_bytes / GIB:.2f}"
        values = [
            str(row.layout),
            memory,
            f"{row.load_seconds:.1f}",
            f"{row.compile_seconds:.1f}",
            f"{row.first_seconds:.2f}",
            f"{statistics.median(row.step_seconds):.4f}",
            f"{max(row.step_seconds) - min(row.step_seconds):.4f}",
            f"{statistics.median(row.video_seconds):.3f}",
            f"{max(row.video_seconds) - min(row.video_seconds):.3f}",
        ]
        cells = (f"{value:{form}}" for value, (_, form) in zip(values, _COLUMNS, strict=True))
        lines.append("  ".join(cells))
    return "\n".join([*lines, "", f"use: {rows[0].layout}"]) + "\n"


def to_json(parsed: argparse.Namespace, rows: Sequence[Measurement]) -> dict[str, Any]:
    """Every figure, with the versions and the device it was measured on."""
    story = rows[0].metadata
    keys = (
        "model",
        "dtype",
        "attention",
        "device_kind",
        "num_devices",
        "num_processes",
        "versions",
    )
    return {key: story[key] for key in keys} | {
        "measured": True,
        "repeats": parsed.repeats,
        "num_inference_steps": rows[0].num_inference_steps,
        "request": story["request"],
        "layouts": [
            {
                "layout": str(row.layout),
                "sequence_parallel": row.layout.sequence_parallel,
                "weights": row.layout.weights,
                "peak_bytes": row.peak_bytes,
                "load_seconds": row.load_seconds,
                "compile_seconds": row.compile_seconds,
                "first_seconds": row.first_seconds,
                "step_seconds": statistics.median(row.step_seconds),
                "video_seconds": statistics.median(row.video_seconds),
                "all_step_seconds": list(row.step_seconds),
                "all_video_seconds": list(row.video_seconds),
                "stage_seconds_of_last_run": row.metadata["seconds"],
            }
            for row in rows
        ],
        "best": str(rows[0].layout),
    }
