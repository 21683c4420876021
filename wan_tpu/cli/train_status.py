"""tell how far a training is, from its folder, also while it runs"""

import argparse
import json
import os
from pathlib import Path

from wan_tpu.cli.streams import write_data
from wan_tpu.training.status import describe_status, read_status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu train status`."""
    parser.add_argument("run", metavar="RUN", help="the run's folder")
    parser.add_argument("--json", action="store_true", help="JSON instead of lines")


def run(parsed: argparse.Namespace) -> int:
    """Prints the state; exit code 0 whatever it is."""
    status = read_status(Path(os.path.abspath(parsed.run)))
    write_data(json.dumps(status, indent=2) + "\n" if parsed.json else describe_status(status))
    return 0
