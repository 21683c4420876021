"""list the configurations to begin from, or show one"""

import argparse

from wan_tpu.cli.streams import write_data
from wan_tpu.training.presets import preset_names, preset_summary, preset_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `wan-tpu train presets`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this one's file")


def run(parsed: argparse.Namespace) -> int:
    """Prints a line per preset, or a preset's TOML."""
    if parsed.name is not None:
        write_data(preset_text(parsed.name))
        return 0
    width = max(map(len, preset_names()))
    write_data("".join(f"{name:<{width}}  {preset_summary(name)}\n" for name in preset_names()))
    return 0
