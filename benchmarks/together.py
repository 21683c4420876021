"""what it brings to make several short videos together: measured here, or planned for a slice

Measured with wan-tiny: as many videos one after the other as together, in turn, in one process.
With `--topology` the step's program is compiled for a slice that is not there.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

from wan_tpu.cli.options import positive_int
from wan_tpu.sharding.layout import parse_layout

PROMPT = "a red circle moving right on a black background"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `python -m benchmarks together`."""
    parser.add_argument("--model", default="wan-tiny", help="(default: %(default)s)")
    parser.add_argument("--layout", default="single", help="(default: %(default)s)")
    parser.add_argument("--size", help="WxH; default the model's")
    parser.add_argument("--frames", type=positive_int, help="default the model's")
    parser.add_argument("--steps", type=positive_int, help="default the model's")
    parser.add_argument("--count", type=positive_int, default=4, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=positive_int, default=5, help="(default: %(default)s)")
    parser.add_argument(
        "--host-devices", type=positive_int, metavar="N", help="virtual CPU devices"
    )
    parser.add_argument("--topology", help="plan a step for this slice instead, such as v6e-8")


def run(parsed: argparse.Namespace) -> int:
    """Measures or plans; one line for each."""
    from wan_tpu import runtime

    runtime.start(host_devices=1 if parsed.topology else parsed.host_devices)
    lines = _measured(parsed) if parsed.topology is None else _planned(parsed)
    for line in lines:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return 0


def _request(parsed: argparse.Namespace, seed: int) -> Any:
    from wan_tpu.request import make_request

    given = {"size": parsed.size, "frames": parsed.frames, "steps": parsed.steps}
    return make_request(PROMPT, seed=seed, **given)


def _measured(parsed: argparse.Namespace) -> Iterator[str]:
    from wan_tpu.pipeline.progress import Calls
    from wan_tpu.pipeline.video_pipeline import VideoPipeline

    pipeline = VideoPipeline.from_pretrained(parsed.model, layout=parse_layout(parsed.layout))
    requests = [_request(parsed, seed) for seed in range(parsed.count)]
    ended: dict[int, Any] = {}
    calls = Calls(on_end=ended.__setitem__, on_frames=lambda member, frames: None)
    pairs: list[tuple[float, float, float, float]] = []
    for _ in range(parsed.repeats + 1):  # the first compiles
        begun = time.perf_counter()
        alone = [pipeline(each, keep_frames=False, on_frames=lambda _: None) for each in requests]
        between = time.perf_counter()
        pipeline.make_together(requests, calls)
        together = time.perf_counter() - between
        steps = sum(each.metadata["seconds"]["denoise"] for each in alone)
        pairs.append((between - begun, together, steps, ended[0]["seconds"]["denoise"]))
    whole = [one / together for one, together, _, _ in pairs[1:]]
    steps = [one / together for _, _, one, together in pairs[1:]]
    seconds = [statistics.median(column) for column in zip(*pairs[1:], strict=True)]
    yield (
        f"{parsed.layout} -> {ended[0]['layout']}: {parsed.count} videos "
        f"{seconds[0]:.2f} s one after the other, {seconds[1]:.2f} s together, "
        f"x{statistics.median(whole):.2f} ({min(whole):.2f} to {max(whole):.2f}); steps alone "
        f"{seconds[2]:.2f} s and {seconds[3]:.2f} s, x{statistics.median(steps):.2f} "
        f"({min(steps):.2f} to {max(steps):.2f})"
    )


def _planned(parsed: argparse.Namespace) -> Iterator[str]:
    """A step of one video, and one of all together, by the planner's rules."""
    from wan_tpu.checkpoints.models import describe_model
    from wan_tpu.planner import find_slice, make_job, plan_together

    description, where = describe_model(parsed.model), find_slice(parsed.topology)
    job = make_job(description, _request(parsed, 0), where, stages=("step",))
    yield from map(str, plan_together(job, parse_layout(parsed.layout), (1, parsed.count)))
