"""train a LoRA, all weights or a new word; plan it, tell how it is doing, take its result

`wan-tpu train CONFIG.toml` trains; a word of `ACTIONS` behind `train` does something else. A file
of such a name is `./status`.
"""

import argparse
import types
from collections.abc import Sequence

from wan_tpu.cli import train_export, train_plan, train_presets, train_run, train_status
from wan_tpu.cli.actions import add_actions

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
    others = [f"wan-tpu train {name} -h" for name in ACTIONS if name != RUN]
    for name, action in add_actions(parser, ACTIONS):
        if name == RUN:
            action.prog, action.epilog = "wan-tpu train", f"see also: {', '.join(others)}"


def run(parsed: argparse.Namespace) -> int:
    """Runs the action."""
    return ACTIONS[parsed.action].run(parsed)


def with_action(words: Sequence[str]) -> list[str]:
    """A command line that names what `train` is to do; one that does not, means `run`."""
    words = list(words)
    if words[:1] == ["train"] and (len(words) == 1 or words[1] not in ACTIONS):
        words.insert(1, RUN)
    return words
