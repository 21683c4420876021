"""`wan-tpu dataset prepare --fleet`, `worker` and `fetch`: clips encoded by any number of machines.

The command only gives the work; it may end, and the work goes on. The packages of the extra `fleet`
are loaded here alone.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import importlib.util
import json
import logging
import pathlib
import signal
import tempfile
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from wan_tpu.cli.interruptible import EXIT_INTERRUPTED, ended_by_signals
from wan_tpu.cli.options import add_model_arguments, positive_int
from wan_tpu.cli.progress import ProgressBars, say
from wan_tpu.cli.streams import write_data
from wan_tpu.errors import InputError, MissingPackageError
from wan_tpu.fleet.address import FleetAddress, FleetKeys, parse_fleet
from wan_tpu.pipeline.progress import Progress

if TYPE_CHECKING:
    from temporalio.client import Client

    from wan_tpu.checkpoints.description import ModelDescription
    from wan_tpu.dataset.fleet.order import PreparePlan
    from wan_tpu.dataset.jobs import PrepareOptions

SHARD_CLIPS = 32
DTYPE = "bfloat16"
"""Of encoders that a fleet's command does not name: the workers may be different machines."""

PATIENCE_SECONDS = 20.0
"""That a command waits for Temporal; a worker waits until it is there."""

FILES = {
    "--fleet-ca-file": "certificate that Temporal's is signed by; makes it TLS",
    "--fleet-cert-file": "certificate of this process for Temporal: mutual TLS",
    "--fleet-key-file": "the private key of that certificate",
    "--fleet-api-key-file": "key for Temporal Cloud, instead of a certificate; makes it TLS",
}

WORKERS_OWN = {
    "prune": "--prune",
    "variant": "--variant",
    "host_devices": "--host-devices",
    "workers": "--workers",
    "no_cache": "--no-cache",
}
"""Options of `prepare` that have no meaning for one who only gives the work."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What `--fleet` names.

    Attributes:
        address: of it.
        keys: by which this process gets in.
    """

    address: FleetAddress
    keys: FleetKeys

    async def connect(self, identity: str, patience_seconds: float = float("inf")) -> "Client":
        """See `wan_tpu.fleet.connection.connect`."""
        from wan_tpu.fleet.connection import connect

        return await connect(
            self.address, self.keys, identity=identity, patience_seconds=patience_seconds
        )


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu dataset prepare` for a fleet."""
    group = parser.add_argument_group("a fleet, whose workers are `wan-tpu dataset worker`")
    _add_fleet_arguments(group, required=False)
    group.add_argument(
        "--shard-clips", type=positive_int, metavar="N",
        help=f"clips that a worker takes at a time (default: {SHARD_CLIPS})",
    )  # fmt: skip
    group.add_argument(
        "--stop", action="store_true",
        help="stop what is being prepared into --output; what is made stays",
    )  # fmt: skip


def add_worker_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu dataset worker`."""
    _add_fleet_arguments(parser, required=True)
    add_model_arguments(parser)
    machine = parser.add_argument_group("the machine")
    machine.add_argument(
        "--workers", type=positive_int, metavar="N",
        help="clips that are decoded at a time (default: one a core)",
    )  # fmt: skip
    machine.add_argument(
        "--one-at-a-time", action="store_true",
        help="load the text encoder and the autoencoder in turn for each shard, where a device has "
        "no room for both",
    )  # fmt: skip
    machine.add_argument(
        "--folder", metavar="FOLDER",
        help="for what is being made: a few times the clips of a shard (default: the system's for "
        "temporary files)",
    )  # fmt: skip
    machine.add_argument(
        "--host-devices", type=positive_int, metavar="N",
        help="N virtual CPU devices, no accelerator",
    )  # fmt: skip
    machine.add_argument(
        "--no-cache", action="store_true", help="keep no compiled programs between runs"
    )


def add_fetch_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu dataset fetch`."""
    parser.add_argument("bucket", metavar="BUCKET", help="as `prepare --fleet -o` was told")
    parser.add_argument(
        "folder", metavar="FOLDER", help="what is there already is not brought again"
    )


def _add_fleet_arguments(parser: Any, *, required: bool) -> None:
    parser.add_argument(
        "--fleet", metavar="URL", required=required,
        help="temporal://HOST:PORT/NAMESPACE, which holds the work",
    )  # fmt: skip
    for flag, words in FILES.items():
        parser.add_argument(flag, metavar="FILE", help=words)


def check_no_fleet(parsed: argparse.Namespace) -> None:
    """Refuses a fleet's options without one.

    Raises:
        InputError: there are such.
    """
    given = [flag for flag in (*FILES, "--shard-clips") if getattr(parsed, _name(flag)) is not None]
    given += ["--stop"] if parsed.stop else []
    if given:
        raise InputError(f"{given[0]} is a fleet's: --fleet temporal://HOST:PORT/NAMESPACE")


# --- the command ----------------------------------------------------------------------------------


def run_prepare(
    parsed: argparse.Namespace, description: "ModelDescription", options: "PrepareOptions"
) -> int:
    """Gives a fleet its clips, and waits; prints what became of them."""
    for name, flag in WORKERS_OWN.items():
        if getattr(parsed, name):
            raise InputError(f"{flag} is a worker's own: it goes to wan-tpu dataset worker")
    fleet = _read_fleet(parsed)
    options = dataclasses.replace(options, dtype=options.dtype or DTYPE)
    with ended_by_signals():
        if parsed.stop:
            return _run(_stop(parsed, fleet))
        return _run(_prepare(parsed, fleet, description, options))


async def _prepare(
    parsed: argparse.Namespace,
    fleet: Fleet,
    description: "ModelDescription",
    options: "PrepareOptions",
) -> int:
    from wan_tpu.cli.dataset_prepare import manifest_json, manifest_lines
    from wan_tpu.dataset.fleet import command
    from wan_tpu.dataset.fleet.result import read_dataset
    from wan_tpu.storage.bucket import open_bucket

    bucket = open_bucket(parsed.output, setting="--output")
    client = await fleet.connect(_identity(), PATIENCE_SECONDS)
    plan = await command.make_plan(parsed.path, parsed.output, description, options)
    begun = await command.begin(client, bucket, plan, parsed.shard_clips or SHARD_CLIPS)
    if begun is not None:
        with ProgressBars() as bars, _leaving_it_going(parsed, begun):

            def show(done: int, total: int) -> None:
                bars.show(Progress(stage="shards", done=done, total=total, seconds=0.0))

            await command.watch(client, begun, on_shards=show, say=say)
    manifest = await read_dataset(bucket)
    if parsed.json:
        told = {"bucket": parsed.output, "workflow": plan.id, **manifest_json(manifest)}
        write_data(json.dumps(told, indent=2) + "\n")
        return 0
    shards = "all of it was there" if begun is None else f"{len(begun.shards)} shards"
    lines = manifest_lines(manifest)
    lines.append(
        f"{len(manifest.samples)} samples in {parsed.output} for {manifest.model}: {shards}"
    )
    lines.append(f"wan-tpu dataset fetch {parsed.output} FOLDER  brings them to where one trains")
    write_data("\n".join(lines) + "\n")
    return 0


async def _stop(parsed: argparse.Namespace, fleet: Fleet) -> int:
    from wan_tpu.dataset.fleet import command

    client = await fleet.connect(_identity(), PATIENCE_SECONDS)
    stopped = await command.stop(client, parsed.output)
    if not stopped:
        raise InputError(f"nothing is being prepared into {parsed.output}")
    write_data(f"stopped; what is made stays in {parsed.output}\n")
    return 0


@contextlib.contextmanager
def _leaving_it_going(parsed: argparse.Namespace, plan: "PreparePlan") -> Iterator[None]:
    """Says, when the command is ended, that the work is not."""
    try:
        yield
    except asyncio.CancelledError:
        say(f"the fleet goes on with {plan.id}: the same command watches it, with --stop it ends")
        raise


# --- a worker -------------------------------------------------------------------------------------


def run_worker(parsed: argparse.Namespace) -> int:
    """Encodes shards until a signal, which gives back the one that is under way."""
    fleet = _read_fleet(parsed)
    from wan_tpu import runtime
    from wan_tpu.checkpoints.diffusers_folder import TOKENIZER
    from wan_tpu.checkpoints.models import describe_model, open_model
    from wan_tpu.dataset.encode import encoders_of
    from wan_tpu.dataset.fleet.shard import ShardMaker
    from wan_tpu.dataset.fleet.worker import Preparing

    parts = (*encoders_of(describe_model(parsed.model, parsed.variant)), TOKENIZER)
    model = open_model(parsed.model, parsed.variant, parts)
    runtime.start(
        host_devices=parsed.host_devices,
        cache_folder=None if parsed.no_cache else runtime.default_cache_folder(),
    )
    import jax

    if parsed.folder is not None and not pathlib.Path(parsed.folder).is_dir():
        raise InputError(f"--folder {parsed.folder} is not there")
    # A sudden end leaves a thread that still writes into it.
    with tempfile.TemporaryDirectory(
        prefix="wan-tpu-worker-", dir=parsed.folder, ignore_cleanup_errors=True
    ) as scratch:
        folder = pathlib.Path(scratch)
        maker = ShardMaker(
            model,
            folder / "shard",
            devices=jax.local_devices(),
            workers=parsed.workers,
            one_at_a_time=parsed.one_at_a_time,
        )
        return _run(_work(Preparing(maker, folder), fleet, model.name))


async def _work(preparing: Any, fleet: Fleet, model: str) -> int:
    from wan_tpu.dataset.fleet.worker import identity, work

    heard: list[int] = []

    def leave(number: int) -> None:
        heard.append(number)
        preparing.leaving.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or in the background
            loop.add_signal_handler(number, leave, number)
    leaving = asyncio.create_task(preparing.leaving.wait())
    connecting = asyncio.create_task(fleet.connect(identity()))
    await asyncio.wait({leaving, connecting}, return_when=asyncio.FIRST_COMPLETED)
    if connecting.done():
        client = connecting.result()
        say(f"prepares for {model}")
        await work(client, preparing, model)
    connecting.cancel()
    say("has left; a shard that was under way was given back")
    return EXIT_INTERRUPTED if heard[:1] == [signal.SIGINT] else 0


# --- bringing it home -----------------------------------------------------------------------------


def run_fetch(parsed: argparse.Namespace) -> int:
    """Brings a fleet's result to a folder."""
    from wan_tpu.dataset.fleet.result import fetch
    from wan_tpu.storage.bucket import open_bucket

    with ended_by_signals(), ProgressBars() as bars:

        def show(done: int, total: int) -> None:
            bars.show(Progress(stage="shards", done=done, total=total, seconds=0.0))

        async def bring() -> int:
            manifest = await fetch(
                open_bucket(parsed.bucket, setting="BUCKET"),
                pathlib.Path(parsed.folder).expanduser(),
                show,
            )
            write_data(f"{len(manifest.samples)} samples in {parsed.folder} for {manifest.model}\n")
            return 0

        return _run(bring())


def _read_fleet(parsed: argparse.Namespace) -> Fleet:
    """What `--fleet` and its files say.

    Raises:
        InputError: it is no address, or half a certificate.
        MissingPackageError: the packages of a fleet are not installed.
    """
    for package in ("temporalio", "obstore"):
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(
                f"--fleet needs the package {package}: pip install 'wan_tpu[fleet]'"
            )
    address = parse_fleet(parsed.fleet, setting="--fleet")
    files = {}
    for flag in FILES:
        found = getattr(parsed, _name(flag))
        name = _name(flag).removeprefix("fleet_").removesuffix("_file")
        files[name] = None if found is None else pathlib.Path(found).expanduser()
    if (files["cert"] is None) != (files["key"] is None):
        raise InputError("--fleet-cert-file and --fleet-key-file go together")
    return Fleet(address=address, keys=FleetKeys(**files))


def _run(work: Coroutine[Any, Any, int]) -> int:
    """Runs it; Temporal's own log says what our messages say better."""
    logging.getLogger("temporalio").setLevel(logging.CRITICAL)
    return asyncio.run(work)


def _identity() -> str:
    from wan_tpu.dataset.fleet.worker import identity

    return identity()


def _name(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
