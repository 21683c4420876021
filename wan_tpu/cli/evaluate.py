"""judge a training: losses at fixed noise levels and videos, beside those of the base

Writes a page, the same figures as JSON, and the videos. The same command gives the same losses to
the bit.
"""

import argparse
import dataclasses
import os
from pathlib import Path

from wan_tpu.cli.options import positive_int
from wan_tpu.cli.output import print_path
from wan_tpu.cli.progress import say
from wan_tpu.errors import InputError, OutputError
from wan_tpu.pipeline.whole_file import reporting
from wan_tpu.training.config import TrainingConfig
from wan_tpu.training.config_check import check_alone, load_options
from wan_tpu.training.config_file import read_config
from wan_tpu.training.evaluation_page import BASE, PAGE, REPORT, TRAINED
from wan_tpu.training.run_folder import read_run
from wan_tpu.training.sample_requests import read_prompts, sample_requests

FOLDER = "evaluation"
"""Where the result goes in the run's folder that -o does not place."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu evaluate`."""
    parser.add_argument("run", metavar="RUN", help="the run's folder; it is only read")
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help=f"of the result (default: RUN/{FOLDER})"
    )
    parser.add_argument(
        "--prompts", metavar="FILE",
        help="of the videos, one on each line (default: the run's own, samples.prompts)",
    )  # fmt: skip
    parser.add_argument(
        "--data", metavar="PREPARED",
        help="clips that wan-tpu dataset prepare made; best such that were not learnt from "
        "(default: the run's own)",
    )  # fmt: skip
    parser.add_argument(
        "--clips", type=positive_int, default=8, metavar="N",
        help="so many of them, spread evenly (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--step", type=positive_int, metavar="N", help="of this checkpoint; default: the newest"
    )
    parser.add_argument("--ema", action="store_true", help="the running average of it")
    where = parser.add_argument_group("where it runs (default: as the run's [machine] says)")
    where.add_argument("--layout", metavar="LAYOUT", help="for example dp2-sp4, or single")
    where.add_argument(
        "--host-devices", type=positive_int, metavar="N",
        help="so many virtual CPU devices, and no accelerator: a training may have it",
    )  # fmt: skip


def run(parsed: argparse.Namespace) -> int:
    """Evaluates, and prints the path of the page."""
    folder = Path(os.path.abspath(parsed.run))
    settings = read_run(folder)
    if parsed.ema and settings["config"]["optimiser.ema_decay"] is None:
        raise InputError(f"{folder} keeps no average: optimiser.ema_decay is open; leave out --ema")
    config = _placed(read_config(str(folder / "config.toml"), needs_data=False), parsed)
    prompts = config.samples.prompts
    if parsed.prompts is not None:
        prompts = read_prompts(Path(parsed.prompts))
    options = load_options(config)
    sample_requests(dataclasses.replace(config.samples, prompts=prompts), options.describe_model())
    output = _check_output(Path(os.path.abspath(parsed.output or folder / FOLDER)))

    from wan_tpu import runtime

    runtime.start(
        host_devices=config.machine.host_devices, cache_folder=runtime.default_cache_folder()
    )
    from wan_tpu.training.evaluate import Asked, evaluate

    asked = Asked(
        data=None if parsed.data is None else Path(parsed.data),
        clips=parsed.clips,
        prompts=prompts,
        step=parsed.step,
        ema=parsed.ema,
    )
    print_path(evaluate(folder, config, asked, output, on_stage=say))
    return 0


def _placed(config: TrainingConfig, parsed: argparse.Namespace) -> TrainingConfig:
    """The run's configuration on the devices that are asked for.

    Raises:
        InputError: the layout is none; LayoutError: it needs more devices.
    """
    machine = config.machine
    if parsed.host_devices is not None:
        # A layout that was meant for other devices does not go with them.
        machine = dataclasses.replace(machine, host_devices=parsed.host_devices, layout=None)
    if parsed.layout is not None:
        machine = dataclasses.replace(machine, layout=parsed.layout)
    config = dataclasses.replace(config, machine=machine)
    check_alone(config, needs_data=False)
    return config


def _check_output(output: Path) -> Path:
    """Finds out, before any work, whether the folder can be one of a result.

    Raises:
        OutputError: a file is in the way, it holds something else, or there is nothing to make it
            in.
    """
    with reporting(output):
        if not output.parent.is_dir():
            raise OutputError(f"cannot write {output}: there is no folder {output.parent}")
        if not os.path.lexists(output):
            return output
        if not output.is_dir():
            raise OutputError(f"cannot write {output}: it exists and is not a folder")
        names = set(os.listdir(output))
    ours = {BASE, TRAINED, *((REPORT, PAGE) if REPORT in names else ())}
    if strangers := sorted(names - ours):
        raise OutputError(
            f"cannot evaluate into {output}: it holds {strangers[0]!r}, and no evaluation; take a "
            "folder that is empty or not there yet"
        )
    return output
