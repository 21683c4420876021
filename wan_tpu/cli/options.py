"""Options that several commands share, and how their values are read."""

import argparse
import secrets
from typing import Any

from wan_tpu.sharding.layout import SEQUENCE_PARALLEL, WEIGHTS, Layout, parse_layout

RANDOM_SEED = -1
LARGEST_DRAWN_SEED = 2**32 - 1
"""Of every seed that is drawn: what other programs take, too."""


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def add_seed_argument(parser: Any) -> None:
    """`--seed`."""
    parser.add_argument(
        "--seed", type=int, default=0,
        help="of the noise; -1 draws one, which the summary tells (default: %(default)s)",
    )  # fmt: skip


def read_seed(parsed: argparse.Namespace) -> int:
    """The seed that the option names, drawn where it is -1."""
    return secrets.randbelow(LARGEST_DRAWN_SEED + 1) if parsed.seed == RANDOM_SEED else parsed.seed


def add_layout_arguments(parser: Any) -> None:
    """`--layout`, `--sequence-parallel`, `--weights`."""
    parser.add_argument(
        "--layout",
        metavar="LAYOUT",
        help="split over devices: dpN (batch), spN (tokens), tpN (heads) joined by '-', "
        "for example dp2-sp4, or single; default: chosen for the devices",
    )
    parser.add_argument(
        "--sequence-parallel",
        choices=SEQUENCE_PARALLEL,
        default="ulysses",
        help="how attention sees the tokens of other devices (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="sharded",
        help="keep each weight over all devices, or a copy on each dp and sp index "
        "(default: %(default)s)",
    )


def read_layout(parsed: argparse.Namespace) -> Layout | None:
    """The layout that the options name; None to choose one.

    Raises:
        LayoutError: the text is not a layout.
    """
    if parsed.layout is None:
        return None
    return parse_layout(
        parsed.layout, sequence_parallel=parsed.sequence_parallel, weights=parsed.weights
    )
