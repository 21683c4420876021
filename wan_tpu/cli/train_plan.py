"""say what a training takes on a slice that is not here: memory, seconds a step, hours, bytes

Compiles the training's step with the TPU compiler for the named slice, without weights, data or a
TPU, and prints a row per layout, best first; the last line is the layout to use.
"""

import argparse

from wan_tpu.cli.options import positive_int
from wan_tpu.cli.plan import ALL, read_layouts
from wan_tpu.cli.progress import StageLines
from wan_tpu.cli.streams import write_data
from wan_tpu.cli.train_run import add_config_arguments, read_config_arguments
from wan_tpu.pipeline.whole_file import check_file_path, write_json_atomically
from wan_tpu.planner import find_slice
from wan_tpu.sharding.layout import SEQUENCE_PARALLEL, WEIGHTS
from wan_tpu.training.config_check import check_with_model, load_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu train plan`."""
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG.toml",
        help="what to train and how (docs/training.md), or a run's folder; its data is not read",
    )  # fmt: skip
    parser.add_argument(
        "--topology", required=True, metavar="TYPE",
        help="Google's accelerator type: v6e-8, v5e-16, v5p-8 (cores), v7x-8 (cores), ...",
    )  # fmt: skip
    parser.add_argument(
        "--size", metavar="WxH", help="of the clips; default: samples.size, else the model's"
    )
    parser.add_argument(
        "--frames", type=positive_int, help="4n + 1; default: samples.num_frames, else the model's"
    )
    parser.add_argument(
        "--layouts", metavar="LAYOUTS",
        help="besides the one that training takes: all, or layouts joined by ','; a compile takes "
        "minutes for each",
    )  # fmt: skip
    parser.add_argument(
        "--sequence-parallel", choices=(*SEQUENCE_PARALLEL, ALL), default=SEQUENCE_PARALLEL[0],
        help="of --layouts: how attention sees the tokens of other devices (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--weights", choices=(*WEIGHTS, ALL), default=WEIGHTS[0],
        help="of --layouts: each weight over all devices, or a copy per dp and sp index "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write everything there, too")
    parser.add_argument(
        "--no-cache", action="store_true", help="compile everything anew, keep nothing"
    )
    add_config_arguments(parser)


def run(parsed: argparse.Namespace) -> int:
    """Prints the table; compiles what was not compiled before."""
    config = read_config_arguments(parsed, needs_data=False)
    where = find_slice(parsed.topology)
    further = [] if parsed.layouts is None else read_layouts(parsed, where.num_devices)
    for layout in further:
        layout.require_devices(where.num_devices)
    description = load_options(config).describe_model()
    check_with_model(config, description)
    json_file = None if parsed.json is None else check_file_path(parsed.json)

    from wan_tpu import runtime

    runtime.start(host_devices=1)  # nothing runs here; a TPU of this machine stays untouched
    from wan_tpu import planner

    job = planner.make_training_job(
        config, description, where, size=parsed.size, frames=parsed.frames
    )
    base = None if parsed.no_cache else runtime.default_cache_base()
    cache = planner.FactsCache(None if base is None else base / "plans")
    planned = planner.TrainingPlanner(job, cache, StageLines().say)
    rows = planned.plan(list(dict.fromkeys([planned.chosen_layout(), *further])))
    if json_file is not None:
        write_json_atomically(json_file, planner.training_to_json(job, rows))
    write_data(planner.format_training_table(job, rows))
    return 0
