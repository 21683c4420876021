"""The options of every command that runs on all hosts of a slice."""

from typing import Any


def add_group_arguments(parser: Any) -> None:
    """`--coordinator`, `--processes`, `--process-id`."""
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
