"""Runs a benchmark; exit codes and error lines are those of `wan-tpu`."""

import argparse
import logging
import sys
from collections.abc import Sequence

from benchmarks import calibration, layouts, lockstep, service, steps, together, training_step
from benchmarks.fleet import command as fleet
from wan_tpu.errors import InputError, WanTpuError

BENCHMARKS = {
    "calibration": calibration,
    "fleet": fleet,
    "layouts": layouts,
    "lockstep": lockstep,
    "service": service,
    "steps": steps,
    "together": together,
    "training-step": training_step,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line and runs one benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    subparsers = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, module in BENCHMARKS.items():
        summary = (module.__doc__ or "").split("\n", 1)[0]
        module.add_arguments(subparsers.add_parser(name, help=summary, description=summary))
    parsed = parser.parse_args(arguments)
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    try:
        return BENCHMARKS[parsed.benchmark].run(parsed)
    except InputError as error:
        return _fail(str(error), 2)
    except WanTpuError as error:
        return _fail(str(error), 1)


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"benchmarks: {' '.join(message.split())}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
