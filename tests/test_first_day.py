"""docs/first-day.md: its commands are commands, its planned figures are those of the results."""

import argparse
import pathlib
import re
import shlex

import pytest

from wan_tpu.cli.main import COMMANDS

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "first-day.md").read_text()


def commands():
    """Every `wan-tpu ...` of an indented block or between back ticks, as words."""
    blocks = re.sub(r"\\\n\s*", "", "\n".join(re.findall(r"^    (.*)$", TEXT, re.MULTILINE)))
    lines = [line for line in blocks.splitlines() if line.startswith("wan-tpu ")]
    inline = re.findall(r"`(wan-tpu [^`]+)`", TEXT)
    return [shlex.split(line)[1:] for line in lines + inline]


def test_there_are_commands():
    assert {words[0] for words in commands()} == {"generate", "plan", "inspect", "consistency"}


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_is_one(words):
    if words == ["generate"]:
        return  # named in a sentence
    parser = argparse.ArgumentParser()
    COMMANDS[words[0]].add_arguments(parser)
    parser.parse_args(words[1:])


def test_the_figures_are_those_of_the_results():
    page = (ROOT / "benchmarks" / "results" / "2026-11-21-layouts-v6e-8.md").read_text()
    (row,) = re.findall(r"^dp2-sp4 +([\d.]+) +([\d.]+) .*? ([\d.]+) +\d+ +161$", page, re.MULTILINE)
    peak, step, _ = row
    assert f"{peak} GiB of 31.25" in TEXT
    assert f"| {step} GiB |" in TEXT
