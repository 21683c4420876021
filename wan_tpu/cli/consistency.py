"""compare layouts with one device: does splitting change the picture?"""

import argparse
import json
import sys
from typing import Any

from wan_tpu.cli.options import positive_int
from wan_tpu.errors import InputError, UnknownNameError

PROMPT = "a red circle moving right on a black background"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu consistency`."""
    parser.add_argument("--model", default="wan-tiny", help="as in generate (default: %(default)s)")
    parser.add_argument(
        "--devices", type=positive_int, default=8, metavar="N",
        help="virtual CPU devices where there is no accelerator (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--layouts", default="all",
        help="all, or names joined by commas: dp2-sp4,tp8 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--attention", default="auto", help="auto, reference, splash, ...")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--steps", type=positive_int, default=4, help="denoising steps")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", help="the figures as JSON, too")


def run(parsed: argparse.Namespace) -> int:
    """Compares; exit code 1 when a layout is not consistent."""
    from wan_tpu import runtime
    from wan_tpu.attention.api import IMPLEMENTATIONS
    from wan_tpu.pipeline.video_file import write_json_atomically
    from wan_tpu.request import VideoRequest

    if parsed.attention not in IMPLEMENTATIONS:
        raise UnknownNameError("attention", parsed.attention, IMPLEMENTATIONS)
    request = VideoRequest(prompt=parsed.prompt, seed=parsed.seed, num_inference_steps=parsed.steps)
    host_devices = None if runtime.accelerator_present() else parsed.devices
    runtime.start(host_devices=host_devices, cache_folder=runtime.default_cache_folder())

    from wan_tpu.pipeline.consistency import TOLERANCES, compare_layouts

    if parsed.dtype not in TOLERANCES:
        raise UnknownNameError("dtype", parsed.dtype, tuple(TOLERANCES))
    layouts = _read_layouts(parsed.layouts, parsed.devices)
    sys.stdout.write(_HEADER)
    comparisons = []
    for comparison in compare_layouts(
        parsed.model, layouts, request, dtype=parsed.dtype, attention=parsed.attention
    ):
        comparisons.append(comparison)
        sys.stdout.write(_row(comparison))
        sys.stdout.flush()
    wrong = [c for c in comparisons if not c.consistent]
    if parsed.json:
        report = {
            "model": parsed.model,
            "dtype": parsed.dtype,
            "consistent": not wrong,
            "layouts": [c.to_json() for c in comparisons],
        }
        write_json_atomically(parsed.json, json.loads(json.dumps(report)))
    if wrong:
        worst = "; ".join(f"{_name(c)} by {c.velocity.max_relative:.1e}" for c in wrong)
        sys.stdout.write(f"not consistent: {worst}\n")
        return 1
    sys.stdout.write(f"consistent: {len(comparisons)} layouts give the one device's video\n")
    return 0


_HEADER = (
    f"{'layout':<32}{'attention':<11}{'transformer':>12}{'cosine':>10}"
    f"{'latents':>12}{'frames':>12}\n"
)


def _read_layouts(text: str, num_devices: int) -> list[Any]:
    """The layouts to compare.

    Raises:
        InputError: a layout needs more devices than there are.
    """
    from wan_tpu.pipeline.consistency import all_layouts
    from wan_tpu.sharding.layout import parse_layout

    if text == "all":
        return all_layouts(num_devices)
    layouts = [parse_layout(name) for name in text.split(",")]
    for layout in layouts:
        if layout.num_devices > num_devices:
            raise InputError(f"layout {layout} needs {layout.num_devices} devices: --devices")
    names = {str(layout) for layout in layouts}
    return [layout for layout in _variants(layouts, num_devices) if str(layout) in names]


def _variants(layouts: list[Any], num_devices: int) -> list[Any]:
    """Every choice of sequence parallelism and weights for the layouts that were named."""
    from wan_tpu.pipeline.consistency import all_layouts

    counts = {layout.num_devices for layout in layouts}
    found = [variant for count in sorted(counts) for variant in all_layouts(count)]
    return [v for v in dict.fromkeys(found) if v.num_devices <= num_devices]


def _name(comparison: Any) -> str:
    layout = comparison.layout
    mode = f" {layout.sequence_parallel}" if layout.sp > 1 else ""
    weights = " replicated" if layout.weights == "replicated" else ""
    return f"{layout}{mode}{weights}"


def _row(comparison: Any) -> str:
    """A line of the table."""
    mark = "" if comparison.consistent else "  <- not consistent"
    return (
        f"{_name(comparison):<32}{comparison.attention:<11}"
        f"{comparison.velocity.max_relative:>12.1e}{comparison.velocity.cosine:>10.6f}"
        f"{comparison.latents.max_relative:>12.1e}{comparison.psnr:>9.1f} dB{mark}\n"
    )
