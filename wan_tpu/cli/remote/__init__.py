"""make videos on a server: generate, list, watch, fetch, cancel

The server is another machine's `python -m server`, or any other that speaks the same routes. Its
address is --server, or WAN_TPU_SERVER; the key that it asks for is in WAN_TPU_API_KEY, or in the
file of --api-key-file, so that nobody sees it in a list of processes.
"""

import argparse
import types

from wan_tpu.cli.remote import cancel, fetch, generate, listing, watch
from wan_tpu.cli.remote.options import add_server_arguments

ACTIONS: dict[str, types.ModuleType] = {
    "generate": generate,
    "list": listing,
    "watch": watch,
    "fetch": fetch,
    "cancel": cancel,
}
"""What can stand behind `remote`; a module's docstring is its help."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions of `wan-tpu remote`, each with its options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, module in ACTIONS.items():
        summary, _, rest = (module.__doc__ or "").partition("\n")
        action = actions.add_parser(
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
        add_server_arguments(action.add_argument_group("the server"))


def run(parsed: argparse.Namespace) -> int:
    """Runs the action."""
    return ACTIONS[parsed.action].run(parsed)
