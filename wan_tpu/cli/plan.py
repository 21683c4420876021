"""say what each layout costs on a slice that is not here

Compiles the stages of a video with the TPU compiler for the named slice, without weights and
without a TPU, and prints a row per layout, best first; the last line is the layout to use.
"""

import argparse
import dataclasses
from typing import TYPE_CHECKING

from wan_tpu.cli.options import (
    add_attention_argument,
    add_few_steps_arguments,
    add_quantize_argument,
    add_step_cache_argument,
    positive_int,
    read_few_steps,
    read_step_cache,
)
from wan_tpu.cli.progress import StageLines
from wan_tpu.cli.streams import write_data
from wan_tpu.errors import InputError, UnknownNameError
from wan_tpu.media import ROLES, placeholders
from wan_tpu.pipeline.whole_file import check_file_path, write_json_atomically
from wan_tpu.planner import find_slice
from wan_tpu.request import ALL_SCHEDULERS, VideoRequest, make_request
from wan_tpu.sharding.layout import (
    SEQUENCE_PARALLEL,
    WEIGHTS,
    Layout,
    factorisations,
    parse_layout,
)

if TYPE_CHECKING:
    from wan_tpu.planner import Job, Slice

ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu plan`."""
    add_plan_arguments(parser, topology_required=True)


def add_plan_arguments(parser: argparse.ArgumentParser, *, topology_required: bool) -> None:
    """The same, for `python -m benchmarks layouts`, too, which can do without a topology."""
    parser.add_argument(
        "--model", default="wan2.1-t2v-14b",
        help="a known model's name, wan-tiny, a folder or a hub id (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--topology", required=topology_required, metavar="TYPE",
        help="Google's accelerator type: v6e-8, v5e-16, v5p-8 (cores), v7x-8 (cores), ...",
    )  # fmt: skip
    parser.add_argument("--size", metavar="WxH", help="pixels; default: the model's")
    parser.add_argument("--frames", type=positive_int, help="4n + 1; default: the model's")
    parser.add_argument("--steps", type=positive_int, help="denoising steps; default: the model's")
    parser.add_argument("--guidance-scale", type=float, help="1 or less plans without guidance")
    parser.add_argument(
        "--guidance-scale-2", type=float, help="of the second transformer, in models that have two"
    )
    parser.add_argument("--scheduler", choices=ALL_SCHEDULERS, help="default: the model's")
    add_few_steps_arguments(parser)
    add_step_cache_argument(parser)
    parser.add_argument(
        "--inputs", metavar="NAMES",
        help=f"what the video is made from besides the prompt: of {', '.join(ROLES)}, joined by "
        "','; default: nothing, or what the model cannot do without",
    )  # fmt: skip
    parser.add_argument(
        "--strength", type=float, help="with a video: how much of it is replaced by noise"
    )
    add_layouts_arguments(parser)
    add_attention_argument(parser)
    parser.add_argument(
        "--dtype", default="bfloat16", help="bfloat16 or float32 (default: %(default)s)"
    )
    add_quantize_argument(parser)
    parser.add_argument(
        "--stages", default="all",
        help="what to compile: all, or text, pictures, step, decode joined by ',' "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--adapter-rank", type=positive_int, metavar="N",
        help="also what it costs to add a LoRA of this rank for a request, on the best layout",
    )  # fmt: skip
    parser.add_argument(
        "--explain", type=positive_int, metavar="N", default=0,
        help="also where the best layout's HBM traffic goes, N lines by kind and by source",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write everything there, too")
    parser.add_argument(
        "--operations", action="store_true", help="with every operation in the JSON"
    )
    parser.add_argument("--plot", metavar="FILE", help="draw time and memory per layout as a PNG")
    parser.add_argument(
        "--no-cache", action="store_true", help="compile everything anew, keep nothing"
    )


def add_layouts_arguments(parser: argparse.ArgumentParser) -> None:
    """`--layouts`, `--sequence-parallel`, `--weights`, for several layouts at once."""
    parser.add_argument(
        "--layouts", default=ALL,
        help="all, or layouts joined by ',', for example dp2-sp4,tp8 or 'dp2-sp4 ring replicated' "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--sequence-parallel", choices=(*SEQUENCE_PARALLEL, ALL), default=SEQUENCE_PARALLEL[0],
        help="how attention sees the tokens of other devices, for layouts that have sp; all tries "
        "each, as consistency does by itself, where a layout takes seconds and not a minute "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--weights", choices=(*WEIGHTS, ALL),
        help="each weight over all devices, or a copy per dp and sp index; all tries both where "
        "they differ, likewise (default: sharded; a plan then tries the other of its best layout, "
        "too, where it fits)",
    )  # fmt: skip


def read_layouts(parsed: argparse.Namespace, num_devices: int) -> list[Layout]:
    """The layouts that the options name, each once; a choice in a layout's text stays.

    Raises:
        LayoutError: a text is not a layout.
    """
    if parsed.layouts == ALL:
        texts = [str(layout) for layout in factorisations(num_devices)]
    else:
        texts = [text.strip() for text in parsed.layouts.split(",")]
    modes = SEQUENCE_PARALLEL if parsed.sequence_parallel == ALL else (parsed.sequence_parallel,)
    kinds = WEIGHTS if parsed.weights == ALL else (parsed.weights or WEIGHTS[0],)
    found = [
        parse_layout(text, sequence_parallel=mode, weights=kind)
        for text in texts
        for mode in modes
        for kind in kinds
    ]
    return list(dict.fromkeys(found))


def run(parsed: argparse.Namespace) -> int:
    """Prints the table; compiles what was not compiled before."""
    where = find_slice(parsed.topology)
    if parsed.adapter_rank is not None and parsed.quantize is not None:
        raise InputError(
            f"a model in {parsed.quantize} takes no adapter for a request; leave --adapter-rank or "
            "--quantize away"
        )
    layouts = read_layouts(parsed, where.num_devices)
    for layout in layouts:
        layout.require_devices(where.num_devices)
    request = read_request(parsed)
    plot = None if parsed.plot is None else check_file_path(parsed.plot)
    json_file = None if parsed.json is None else check_file_path(parsed.json)

    from wan_tpu import runtime

    runtime.start(host_devices=1)  # nothing runs here; a TPU of this machine stays untouched
    from wan_tpu import planner

    if plot is not None:
        planner.require_matplotlib()
    job = _make_job(parsed, request, where)
    base = None if parsed.no_cache else runtime.default_cache_base()
    cache = planner.FactsCache(None if base is None else base / "plans")
    both = parsed.weights is None
    rows = planner.Planner(job, cache, StageLines().say).plan(layouts, both_weights=both)
    switch = None
    if parsed.adapter_rank is not None:
        switch = planner.plan_switch(job, rows[0], parsed.adapter_rank)
    if json_file is not None:
        found = planner.to_json(job, rows, operations=parsed.operations)
        added = {} if switch is None else {"adapter_switch": switch.to_json()}
        write_json_atomically(json_file, found | added)
    if plot is not None:
        planner.write_plot(plot, job, rows)
    write_data(planner.format_table(job, rows, explain=parsed.explain, switch=switch))
    return 0


def _make_job(parsed: argparse.Namespace, request: VideoRequest, where: "Slice") -> "Job":
    from wan_tpu.checkpoints.models import describe_model
    from wan_tpu.pipeline.model import parse_dtype
    from wan_tpu.pipeline.step_cache import with_curve
    from wan_tpu.planner import STAGE_GROUPS, make_job

    stages: list[str] = []
    for name in parsed.stages.split(","):
        if name.strip() not in STAGE_GROUPS:
            raise UnknownNameError("stage", name, tuple(STAGE_GROUPS))
        stages += STAGE_GROUPS[name.strip()]
    return make_job(
        with_curve(describe_model(parsed.model), read_step_cache(parsed)[1]),
        request,
        where,
        dtype=str(parse_dtype(parsed.dtype)),
        attention=parsed.attention,
        quantize=parsed.quantize,
        stages=tuple(dict.fromkeys(stages)),
    )


def read_request(parsed: argparse.Namespace, prompt: str = "planned") -> VideoRequest:
    """The video that the options name; its pictures are roles without bytes."""
    request = make_request(
        prompt,
        size=parsed.size,
        frames=parsed.frames,
        steps=parsed.steps,
        guidance_scale=parsed.guidance_scale,
        guidance_scale_2=parsed.guidance_scale_2,
        scheduler=parsed.scheduler,
        strength=parsed.strength,
        step_cache=read_step_cache(parsed)[0],
        **read_few_steps(parsed),
    )
    roles = [name.strip() for name in parsed.inputs.split(",")] if parsed.inputs else []
    for name in roles:
        if name not in ROLES:
            raise UnknownNameError("input", name, ROLES)
    return dataclasses.replace(request, **placeholders(roles))
