"""train a LoRA, all weights or a new word; plan it, tell how it is doing, take its result

`wan-tpu train CONFIG.toml` trains; a word of `ACTIONS` behind `train` does something else. A file
of such a name is `./status`.
"""

import argparse
import types
from collections.abc import Sequence

from wan_tpu.cli import train_export, train_plan, train_presets, train_run, train_status

RUN = "run"
ACTIONS: dict[str, types.ModuleType] = {
    RUN: train_run,
    "plan": train_plan,
    "status": train_status,
    "presets": train_presets,
    "export": train_export,
}
"""What can stand behind `train`; a module's docstring is its help."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The actions of `wan-tpu train`, each with its options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    others = [f"wan-tpu train {name} -h" for name in ACTIONS if name != RUN]
    for name, module in ACTIONS.items():
        summary, _, rest = (module.__doc__ or "").partition("\n")
        action = actions.add_parser(
            name,
            help=summary,
            description=f"{summary}\n{rest}",
            prog="wan-tpu train" if name == RUN else f"wan-tpu train {name}",
            epilog=f"see also: {', '.join(others)}" if name == RUN else None,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        action.add_argument(
            "-v", "--verbose", action="store_true", default=argparse.SUPPRESS,
            help="say what is being done",
        )  # fmt: skip
        module.add_arguments(action)


def run(parsed: argparse.Namespace) -> int:
    """Runs the action."""
    return ACTIONS[parsed.action].run(parsed)


def with_action(words: Sequence[str]) -> list[str]:
    """A command line that names what `train` is to do; one that does not, means `run`."""
    words = list(words)
    if words[:1] == ["train"] and (len(words) == 1 or words[1] not in ACTIONS):
        words.insert(1, RUN)
    return words
