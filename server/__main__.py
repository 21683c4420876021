"""`python -m server` serves; `python -m server keys add|rotate|list|remove` keeps the API keys.

On several hosts the same command runs on each: the first process serves, the others follow it.
In a fleet WAN_TPU_ROLE says whether it takes requests or makes videos.

Exit codes: 0 it was told to end and did; 1 it failed, or cannot start: a taken port or data folder,
a database or key file that cannot be used, jobs that belong to another server by now; 2 wrong usage
or settings; 75 a process of the slice was lost, and all are to be started anew.
"""

import argparse
import importlib.util
import logging
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError

from server.environment import describe_settings, unknown_variables
from server.keys import KeysError, add_key, read_keys, remove_key
from server.logs import start_logging
from server.settings import Settings
from server.signals import Told
from server.systemd import Notifier
from wan_tpu.errors import MissingPackageError, WanTpuError
from wan_tpu.multihost.lockstep import EXIT_LOST
from wan_tpu.multihost.options import add_group_arguments

if TYPE_CHECKING:
    from fastapi import FastAPI

    from server.http.listening import Listening
    from server.http.serving import Served

EXIT_FAILED, EXIT_USAGE = 1, 2

logger = logging.getLogger("server")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parsed = _make_parser().parse_args(arguments)
    try:
        if parsed.command == "keys":
            return _keys(parsed)
        if parsed.command in ("adopt", "downgrade"):
            return _maintain(parsed.command, Settings())
        for name in ("coordinator", "processes", "process_id", "group_secret_file"):
            if getattr(parsed, name) is not None:
                os.environ[f"WAN_TPU_{name.upper()}"] = str(getattr(parsed, name))
        return _serve(Settings())
    except ValidationError as error:
        for problem in error.errors():
            name = "".join(f"WAN_TPU_{str(part).upper()}: " for part in problem["loc"][:1])
            _say(f"{name}{problem['msg'].removeprefix('Value error, ')}")
        return EXIT_USAGE
    except WanTpuError as error:
        _say(str(error))
        return EXIT_FAILED


def _serve(settings: Settings) -> int:
    told = Told()
    told.listen()
    group = settings.group
    start_logging(settings.log_level, group)
    for name in unknown_variables(os.environ):
        logger.warning("%s is set, but there is no such setting; see --help", name)
    notifier = Notifier()
    if not group.leads:
        from server.engine.lockstep import follow

        notifier.ready()
        notifier.keep_alive()
        follow(settings)
    if settings.fleet is not None and importlib.util.find_spec("temporalio") is None:
        raise MissingPackageError("a fleet needs its packages: pip install 'wan_tpu[fleet]'")
    from server.http.listening import listen

    listening = listen(settings)
    told.before_end = listening.close
    try:
        return _serve_at(settings, listening, told, notifier)
    finally:
        listening.close()
        told.finish()


def _serve_at(settings: Settings, listening: "Listening", told: Told, notifier: Notifier) -> int:
    from server.http.serving import serve

    service, app = _open(settings)
    has_served = serve(service, app, listening, told, notifier)
    if service.jobs.fatal is not None:
        logger.error("ending with %d: %s", EXIT_FAILED, service.jobs.fatal)
        return EXIT_FAILED
    if service.jobs.has_lost_process:
        logger.error("ending with %d, so that all processes start anew", EXIT_LOST)
        return EXIT_LOST
    return 0 if has_served else EXIT_FAILED


def _open(settings: Settings) -> tuple["Served", "FastAPI"]:
    """What this server has in its role, and the application that shows it."""
    if settings.role == "slice":
        from server.http.probes import make_probes, open_slice

        found = open_slice(settings)
        return found, make_probes(found)
    from server.http.app import make_app
    from server.service import open_service

    service = open_service(settings)
    if settings.api_keys_file is None:
        logger.info("no WAN_TPU_API_KEYS_FILE: open to this machine alone, without keys")
    return service, make_app(service)


def _maintain(command: str, settings: Settings) -> int:
    """Does to the data folder and the database what no start does by itself."""
    start_logging(settings.log_level, settings.group)
    from server.jobs.opening import adopt, downgrade

    _say(adopt(settings) if command == "adopt" else downgrade(settings))
    return 0


def _keys(parsed: argparse.Namespace) -> int:
    """Adds, rotates, lists or removes keys. Data on stdout, talk on stderr."""
    given = parsed.file or os.environ.get("WAN_TPU_API_KEYS_FILE")
    if not given:
        _say("which file? set WAN_TPU_API_KEYS_FILE or give --file")
        return EXIT_USAGE
    path = pathlib.Path(given)
    match parsed.action:
        case "add" | "rotate":
            _add_key(path, parsed.name, second=parsed.action == "rotate")
        case "list":
            _print("".join(f"{entry.name} {entry.day}\n" for entry in read_keys(path)))
        case "remove":
            remove_key(path, parsed.name, older=parsed.older)
    return 0


def _add_key(path: pathlib.Path, name: str, *, second: bool) -> None:
    """Makes a key and prints it; one that cannot be printed is not kept, since nobody has it."""
    if sys.stdout is None:
        raise KeysError("standard output is closed, and the key would be shown there")
    key = add_key(path, name, second=second)
    try:
        _print(key + "\n")
    except KeysError:
        remove_key(path, name, key=key)
        raise
    _say(f"the key of {name}, shown this once; only its hash is in {path}")
    if second:
        _say(f"both keys of {name} work; `keys remove {name} --older` takes the former out")
    else:
        _say(f"what was made under the name {name} before and is still there, it sees, too")


def _print(text: str) -> None:
    """Data on stdout.

    Raises:
        KeysError: it cannot be written.
    """
    if sys.stdout is None:
        raise KeysError("standard output is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would try once more at its end
        raise KeysError(f"cannot write to standard output: {error.strerror}") from None


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Serves videos over HTTP. Everything is set by environment variables.",
        epilog="environment variables:\n" + describe_settings(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_group_arguments(parser)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser(
        "adopt",
        help="use the data folder and the database together, though they do not know each other",
    )
    commands.add_parser(
        "downgrade", help="bring the database to what the release before this one can use"
    )
    keys = commands.add_parser("keys", help="add, rotate, list and remove API keys")
    _add_file_argument(keys, default=None)
    actions = keys.add_subparsers(dest="action", required=True, metavar="add|rotate|list|remove")
    for name, summary in (
        ("add", "make a key and print it once"),
        ("rotate", "make a second key of a name, to take the place of its first"),
        ("remove", "take the keys of a name out"),
        ("list", "print each key's name and the day on which it was made"),
    ):
        action = actions.add_parser(name, help=summary, description=summary)
        _add_file_argument(action, default=argparse.SUPPRESS)  # or it would undo one given before
        if name != "list":
            action.add_argument("name", metavar="NAME", help="whose it is")
        if name == "remove":
            action.add_argument("--older", action="store_true", help="of two keys the older alone")
    return parser


def _add_file_argument(parser: argparse.ArgumentParser, *, default: str | None) -> None:
    help_ = "the file of keys (default: WAN_TPU_API_KEYS_FILE)"
    parser.add_argument("--file", metavar="FILE", default=default, help=help_)


def _say(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"wan-tpu: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
