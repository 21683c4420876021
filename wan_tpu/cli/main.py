"""Reads the command line, runs a command, turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 the command line or the request is wrong, 75 another process of the
slice was lost or a training had SIGTERM (the same commands again may well succeed), 130 Ctrl-C,
SIGTERM or SIGHUP. Commands import what they need themselves, so that `--help` and wrong usage
answer at once.
"""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from wan_tpu import __version__
from wan_tpu.cli import (
    adapter,
    calibrate,
    compare,
    consistency,
    dataset,
    evaluate,
    generate,
    inspect,
    plan,
    remote,
    streams,
    train,
)
from wan_tpu.errors import Cancelled, InputError, ProcessLostError, WanTpuError
from wan_tpu.multihost.lockstep import EXIT_LOST

COMMANDS = {
    "generate": generate,
    "inspect": inspect,
    "consistency": consistency,
    "plan": plan,
    "dataset": dataset,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "adapter": adapter,
    "calibrate": calibrate,
    "remote": remote,
}

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code, or ends the process where JAX has run."""
    is_own_process = arguments is None
    if is_own_process:
        streams.prepare()
    code = EXIT_FAILED
    try:
        code = _run(arguments)
    except Exception:  # a mistake of ours
        if not (is_own_process or _has_peers()):
            raise
        traceback.print_exc()
    if _has_peers() or (is_own_process and "jax" in sys.modules):
        # Python's orderly end stops threads in the middle of compiling, and XLA then aborts the
        # process; JAX's waits minutes for other processes, which may be gone.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _has_peers() -> bool:
    """Whether JAX runs over several processes; without loading it."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _run(arguments: Sequence[str] | None) -> int:
    try:
        parsed = _parse(arguments)
        logging.basicConfig(
            level=logging.INFO if parsed.verbose else logging.WARNING,
            format="%(levelname)s %(name)s: %(message)s",
            stream=sys.stderr,
        )
        return COMMANDS[parsed.command].run(parsed)
    except (KeyboardInterrupt, Cancelled):
        return _fail("interrupted", EXIT_INTERRUPTED)
    except InputError as error:
        return _fail(str(error), EXIT_USAGE)
    except ProcessLostError as error:
        return _fail(str(error), EXIT_LOST)
    except WanTpuError as error:
        return _fail(str(error), EXIT_FAILED)
    except BrokenPipeError:
        return EXIT_FAILED  # the reader of our output has seen enough; nothing to say


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; help and version end here, once they are written."""
    try:
        words = sys.argv[1:] if arguments is None else arguments
        return _make_parser().parse_args(train.with_action(words))
    except SystemExit:
        streams.write_data("")
        raise


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wan-tpu", description="Text to video with the Wan diffusion models on TPU slices."
    )
    parser.add_argument("--version", action="version", version=f"wan-tpu {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or "").split("\n", 1)[0]
        command = subparsers.add_parser(name, help=summary, description=summary)
        command.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
        module.add_arguments(command)
    return parser


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"wan-tpu: {' '.join(message.split())}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
