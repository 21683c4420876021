"""The options of every command that runs on all hosts of a slice."""

import os
import pathlib
from typing import Any

from wan_tpu.multihost.secret import OPTION, VARIABLE


def add_group_arguments(parser: Any) -> None:
    """`--coordinator`, `--processes`, `--process-id`, `--group-secret-file`."""
    parser.add_argument(
        "--coordinator",
        metavar="HOST:PORT",
        help="where process 0 listens for the others; not needed on a TPU slice",
    )
    parser.add_argument(
        "--processes", metavar="N", type=int, help="how many processes share the model"
    )
    parser.add_argument(
        "--process-id", metavar="I", type=int, help="which of them this is; 0 leads"
    )
    parser.add_argument(
        OPTION,
        metavar="FILE",
        type=pathlib.Path,
        default=os.environ.get(VARIABLE),
        help="secret by which they know each other, the same on every host; needed unless "
        f"process 0 listens on loopback (default: {VARIABLE})",
    )
