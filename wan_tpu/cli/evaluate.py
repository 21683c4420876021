"""judge a training: losses at fixed noise levels and videos, beside those of the base

Writes a page, the same figures as JSON, and the videos. The same command gives the same losses to
the bit.
"""

import argparse
import dataclasses
import importlib
import os
from pathlib import Path

from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.cli.in_step import in_step, make_once
from wan_tpu.cli.interruptible import Interruptible
from wan_tpu.cli.options import positive_int
from wan_tpu.cli.output import print_path
from wan_tpu.cli.progress import say
from wan_tpu.cli.streams import keep_stdout_for_data
from wan_tpu.errors import InputError, OutputError
from wan_tpu.multihost.group import ProcessGroup, find_group
from wan_tpu.multihost.identity import Identity, make_identity
from wan_tpu.multihost.join import agree
from wan_tpu.multihost.options import add_group_arguments
from wan_tpu.pipeline.progress import Progress
from wan_tpu.pipeline.whole_file import reporting
from wan_tpu.training.asked import CLIPS, Asked
from wan_tpu.training.config import TrainingConfig
from wan_tpu.training.config_check import check_alone, check_host_devices, load_options
from wan_tpu.training.config_file import read_config
from wan_tpu.training.config_keys import in_use
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
        "--clips", type=positive_int, default=CLIPS, metavar="N",
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
    add_group_arguments(
        parser.add_argument_group("several hosts (the same command on each; process 0 writes)")
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the command line says, checked as far as it can be without a device.

    Attributes:
        folder: of the run.
        config: of the run, on the devices that are asked for.
        asked: what of it.
        output: folder of the result.
        group: the processes that evaluate together.
    """

    folder: Path
    config: TrainingConfig
    asked: Asked
    output: Path
    group: ProcessGroup


def run(parsed: argparse.Namespace) -> int:
    """Evaluates, and prints the path of the page."""
    order = _read(parsed)
    if order.group.num_processes > 1:
        keep_stdout_for_data()
    running = Interruptible()
    pages: list[Path] = []
    running.run(lambda: pages.append(_evaluate(order, running)))
    if order.group.leads:
        print_path(pages[0])
    return 0


def _read(parsed: argparse.Namespace) -> Order:
    """The command line.

    Raises:
        InputError: there is no such run, or it cannot be evaluated so.
        OutputError: something is in the way of the result.
    """
    folder = Path(os.path.abspath(parsed.run))
    settings = read_run(folder)
    if parsed.ema and settings["config"]["optimiser.ema_decay"] is None:
        raise InputError(f"{folder} keeps no average: optimiser.ema_decay is open; leave out --ema")
    config = _placed(read_config(str(folder / "config.toml"), needs_data=False), parsed)
    prompts = config.samples.prompts
    if parsed.prompts is not None:
        prompts = read_prompts(Path(parsed.prompts))
    group = find_group(
        parsed.coordinator, parsed.processes, parsed.process_id, parsed.group_secret_file
    )
    check_host_devices(config, group.num_processes)
    model = load_options(config).describe_model()
    sample_requests(dataclasses.replace(config.samples, prompts=prompts), model)
    output = Path(os.path.abspath(parsed.output or folder / FOLDER))
    return Order(
        folder=folder,
        config=config,
        asked=Asked(
            data=None if parsed.data is None else Path(os.path.abspath(parsed.data)),
            clips=parsed.clips,
            prompts=prompts,
            step=parsed.step,
            ema=parsed.ema,
        ),
        output=_check_output(output) if group.leads else output,
        group=group,
    )


def _evaluate(order: Order, running: Interruptible) -> Path:
    """Loads and judges; with the other processes of the slice in step around it."""
    with in_step(order.group, running) as process:
        model = load_options(order.config).open_model()
        joined = agree(process, order.group, lambda: _identify(order, model))

        from wan_tpu import runtime

        runtime.start(
            host_devices=order.config.machine.host_devices,
            cache_folder=runtime.default_cache_folder(),
            joined=joined,
        )
        process.loaded()
        from wan_tpu.training.evaluate import evaluate

        def report_stage(stage: str) -> None:
            process.note(stage, is_over=False)
            if order.group.leads:
                say(stage)

        def report(made: Progress) -> None:
            process.note(made.stage, is_over=made.done >= made.total)

        return make_once(
            process,
            {"run": str(order.folder)},
            lambda _, should_stop: evaluate(
                order.folder,
                order.config,
                order.asked,
                order.output,
                on_stage=report_stage,
                on_progress=report,
                should_cancel=should_stop,
            ),
            asked=running.is_asked,
        )


def _identify(order: Order, model: ModelDescription) -> Identity:
    """What has to be the same in all processes."""
    importlib.import_module("wan_tpu.runtime")  # JAX changes variables that are compared
    asked = {name: str(value) for name, value in dataclasses.asdict(order.asked).items()}
    return make_identity(
        model_paths=model.paths,
        settings={**in_use(order.config), **asked, "output": str(order.output)},
        packages=("wan_tpu",),
    )


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
