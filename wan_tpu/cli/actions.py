"""Commands that do several things, each a module of its own behind a word."""

import argparse
import types
from collections.abc import Iterator, Mapping


def add_actions(
    parser: argparse.ArgumentParser, actions: Mapping[str, types.ModuleType]
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each action's name and parser, which has the action's own options.

    Args:
        parser: of the command; `action` of what it parses is the action's name.
        actions: by the word; a module's docstring is its help, `add_arguments` its options.
    """
    subparsers = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, module in actions.items():
        summary, _, rest = (module.__doc__ or "").partition("\n")
        action = subparsers.add_parser(
            name,
            help=summary,
            description=f"{summary}\n{rest}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        action.add_argument(
            "-v", "--verbose", action="store_true", default=argparse.SUPPRESS,
            help="say what is being done",
        )  # fmt: skip
        module.add_arguments(action)
        yield name, action
