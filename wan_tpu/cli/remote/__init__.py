"""make videos on a server: generate, list, watch, fetch, cancel, models, slices

The server is another machine's `python -m server`, or any other that speaks the same routes. Its
address is --server, or WAN_TPU_SERVER; the key that it asks for is in WAN_TPU_API_KEY, or in the
file of --api-key-file, so that nobody sees it in a list of processes.
"""

import argparse
import types

from wan_tpu.cli.actions import add_actions
from wan_tpu.cli.remote import cancel, fetch, generate, listing, models, slices, watch
from wan_tpu.cli.remote.options import add_server_arguments

ACTIONS: dict[str, types.ModuleType] = {
    "generate": generate,
    "list": listing,
    "watch": watch,
    "fetch": fetch,
    "cancel": cancel,
    "models": models,
    "slices": slices,
}
"""What can stand behind `remote`; a module's docstring is its help."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions of `wan-tpu remote`, each with its options."""
    for _, action in add_actions(parser, ACTIONS):
        add_server_arguments(action.add_argument_group("the server"))


def run(parsed: argparse.Namespace) -> int:
    """Runs the action."""
    return ACTIONS[parsed.action].run(parsed)
