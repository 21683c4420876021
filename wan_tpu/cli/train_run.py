"""train a LoRA, all weights or a new word, from a TOML file or a preset; or go on with a run

The run's folder decides: where nothing is, training begins; where a run is, it goes on after its
last checkpoint. Ctrl-C or SIGTERM saves and stops, and the same command goes on.
"""

import argparse
import dataclasses
import importlib
import json
import os
import pathlib

from wan_tpu.checkpoints.models import ModelDescription
from wan_tpu.cli.in_step import in_step, make_once
from wan_tpu.cli.options import positive_int
from wan_tpu.cli.output import print_path
from wan_tpu.cli.progress import say
from wan_tpu.cli.stoppable import Stoppable
from wan_tpu.cli.streams import keep_stdout_for_data, write_data
from wan_tpu.errors import Cancelled, InputError
from wan_tpu.multihost.group import ProcessGroup, find_group
from wan_tpu.multihost.identity import Identity, make_identity
from wan_tpu.multihost.join import agree
from wan_tpu.multihost.lockstep import Lockstep
from wan_tpu.multihost.options import add_group_arguments
from wan_tpu.pipeline.progress import Progress
from wan_tpu.training.config import TrainingConfig
from wan_tpu.training.config_check import check_host_devices, check_with_model, load_options
from wan_tpu.training.config_file import read_config, to_toml, toml_value
from wan_tpu.training.config_keys import in_use
from wan_tpu.training.metrics import Line, Outcome, Stage, Step
from wan_tpu.training.progress import TrainingProgress
from wan_tpu.training.run_folder import RunFolder, is_run, open_run

RUNS = "runs"
"""Where a run goes that -o does not place."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu train CONFIG.toml`."""
    parser.add_argument(
        "config", nargs="?", metavar="CONFIG.toml",
        help="what to train, how and of what (docs/training.md); or a run's folder, to go on there",
    )  # fmt: skip
    parser.add_argument(
        "-o", "--output", metavar="RUN",
        help=f"the run's folder (default: {RUNS}/ and the name of the file or preset)",
    )  # fmt: skip
    add_config_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true",
        help="print the whole configuration, after every check that needs no device, and end",
    )  # fmt: skip
    parser.add_argument(
        "--no-cache", action="store_true", help="keep no compiled programs between runs"
    )
    add_group_arguments(
        parser.add_argument_group("several hosts (the same command on each; process 0 writes)")
    )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that stand for keys of the configuration, for other actions, too."""
    keys = parser.add_argument_group("instead of the file's keys, or over them")
    keys.add_argument("--preset", metavar="NAME", help="one of wan-tpu train presets")
    keys.add_argument("--data", metavar="PATH", help="data.path")
    keys.add_argument("--model", metavar="NAME", help="model.name")
    keys.add_argument("--steps", metavar="N", help="train.steps")
    keys.add_argument(
        "--batch", type=positive_int, metavar="N",
        help="samples that are computed at once, over all devices; train.batch is --accumulate "
        "times as many",
    )  # fmt: skip
    keys.add_argument(
        "--accumulate", type=positive_int, metavar="N",
        help="train.accumulate: so many times --batch make a step",
    )  # fmt: skip
    keys.add_argument("--lr", metavar="RATE", help="optimiser.learning_rate")
    keys.add_argument("--layout", metavar="LAYOUT", help="machine.layout, for example dp2-sp4")
    keys.add_argument("--host-devices", metavar="N", help="machine.host_devices: virtual CPUs")
    keys.add_argument(
        "--set", action="append", default=[], metavar="TABLE.KEY=VALUE",
        help="any key; as often as needed",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the command line says, checked as far as it can be without a device.

    Attributes:
        config: of the run.
        model: that it trains; its files may not be here yet.
        output: the run's folder.
        group: the processes that train together.
        keeps_programs: whether compiled programs are kept for the next run.
    """

    config: TrainingConfig
    model: ModelDescription
    output: pathlib.Path
    group: ProcessGroup
    keeps_programs: bool


def run(parsed: argparse.Namespace) -> int:
    """Trains; what is wrong is said before anything is written or downloaded."""
    config = read_config_arguments(parsed, needs_data=True)
    group = find_group(
        parsed.coordinator, parsed.processes, parsed.process_id, parsed.group_secret_file
    )
    check_host_devices(config, group.num_processes)
    model = load_options(config).describe_model()
    check_with_model(config, model)
    if parsed.dry_run:
        write_data(to_toml(config))
        return 0
    order = Order(
        config=config,
        model=model,
        output=_run_folder(parsed),
        group=group,
        keeps_programs=not parsed.no_cache,
    )
    with open_run(order.output, config, leads=group.leads) as folder:
        return _run(order, folder)


def read_config_arguments(parsed: argparse.Namespace, *, needs_data: bool) -> TrainingConfig:
    """The configuration that `config` and `add_config_arguments` say.

    Raises:
        InputError: see `wan_tpu.training.config_file.read_config`.
    """
    file = _file(parsed)
    if file is None and parsed.preset is None:
        raise InputError(
            "nothing says what to train: give a CONFIG.toml, or --preset with --data; wan-tpu "
            "train presets lists them"
        )
    settings = [
        *_settings(parsed),
        *parsed.set,  # they win
    ]
    if parsed.batch is not None or parsed.accumulate is not None:
        before = read_config(file, preset=parsed.preset, settings=settings, needs_data=False).train
        parts = parsed.accumulate or before.accumulate
        at_once = parsed.batch or before.batch // before.accumulate
        settings += [f"train.batch={at_once * parts}", f"train.accumulate={parts}"]
    return read_config(file, preset=parsed.preset, settings=settings, needs_data=needs_data)


def _file(parsed: argparse.Namespace) -> str | None:
    """The TOML file; a run's folder stands for the one in it."""
    if parsed.config is not None and is_run(pathlib.Path(parsed.config)):
        return os.path.join(parsed.config, "config.toml")
    return parsed.config


def _settings(parsed: argparse.Namespace) -> list[str]:
    """The options that are one key's, as settings."""
    texts = {"data.path": parsed.data, "model.name": parsed.model, "machine.layout": parsed.layout}
    values = {
        "train.steps": parsed.steps,
        "optimiser.learning_rate": parsed.lr,
        "machine.host_devices": parsed.host_devices,
    }
    return [
        *(f"{key}={toml_value(text)}" for key, text in texts.items() if text is not None),
        *(f"{key}={value}" for key, value in values.items() if value is not None),
    ]


def _run_folder(parsed: argparse.Namespace) -> pathlib.Path:
    """Where the run is, or goes."""
    if parsed.output is not None:
        return pathlib.Path(parsed.output)
    if parsed.config is None:
        return pathlib.Path(RUNS, parsed.preset)
    given = pathlib.Path(parsed.config)
    if is_run(given):
        return given
    if given.name == "config.toml" and is_run(given.parent):
        return given.parent
    return pathlib.Path(RUNS, given.stem)


def _run(order: Order, folder: RunFolder) -> int:
    """Trains, and says how it ended; the exit code."""
    if order.group.num_processes > 1:
        keep_stdout_for_data()
    if order.group.leads:
        say(f"trains in {folder.path}")
    running = Stoppable(leads=order.group.leads)
    outcomes: list[Outcome] = []
    try:
        running.run(lambda: outcomes.append(_train(order, folder, running)))
    except Cancelled:  # before there was a step to save
        say("interrupted")
        return running.exit_code
    (outcome,) = outcomes
    if not outcome.is_finished:
        if order.group.leads:
            say(
                f"stopped after step {outcome.step} of {outcome.steps}, which is saved; the same "
                f"command goes on, or: wan-tpu train {folder.path}"
            )
        return running.exit_code
    if order.group.leads:
        print_path(outcome.result or folder.path)
    return 0


def _train(order: Order, folder: RunFolder, running: Stoppable) -> Outcome:
    """Loads and trains; with the other processes of the slice in step around it."""
    with (
        TrainingProgress(shown=order.group.leads) as progress,
        in_step(order.group, running) as process,
    ):
        model = load_options(order.config).open_model()
        joined = agree(process, order.group, lambda: _identify(order, model))

        from wan_tpu import runtime

        runtime.start(
            host_devices=order.config.machine.host_devices,
            cache_folder=runtime.default_cache_folder() if order.keeps_programs else None,
            joined=joined,
        )
        running.when_asked(lambda: process.tell_asked("it is asked to save and end"))
        process.loaded()
        import jax

        from wan_tpu.planner import peak_flops
        from wan_tpu.training.run import train

        def report(line: Line) -> None:
            _note(line, process, running)
            progress.show(line)

        def report_sample(made: Progress) -> None:
            process.note(made.stage, is_over=made.done >= made.total)

        return make_once(
            process,
            {"config": json.dumps(in_use(order.config))},
            lambda _, should_stop: train(
                order.config,
                folder,
                on_progress=report,
                on_sample=report_sample,
                should_stop=should_stop,
                peak_flops=peak_flops(jax.devices()[0].device_kind),
            ),
            asked=lambda: running.is_asked() or process.others_asked(),
        )


def _note(line: Line, process: Lockstep, running: Stoppable) -> None:
    """Tells the other processes where this one is, and that there is something to save."""
    if isinstance(line, Stage):
        process.note(line.name, is_over=False)
    elif isinstance(line, Step):
        process.note("train", is_over=False)
        running.has_something()


def _identify(order: Order, model: ModelDescription) -> Identity:
    """What has to be the same in all processes."""
    importlib.import_module("wan_tpu.runtime")  # JAX changes variables that are compared
    return make_identity(
        model_paths=model.paths,
        settings={**in_use(order.config), "output": os.path.abspath(order.output)},
        packages=("wan_tpu",),
    )
