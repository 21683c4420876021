"""`python -m benchmarks steps`: every kind of step runs, on one device and split."""

import re

import pytest

from benchmarks.__main__ import main

SMALL = ("--model", "wan-tiny", "--size", "32x32", "--frames", "5", "--turns", "1", "--rank", "4")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["single", "dp2-sp2-tp2"])
def test_every_kind_has_its_line(capsys, devices, monkeypatch, layout):
    monkeypatch.setattr("jax.devices", lambda: devices[: 1 if layout == "single" else 8])
    assert main(["steps", *SMALL, "--layout", layout]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [re.split(r"  +|:", line)[0] for line in lines]
    assert names[0] == "guided"
    assert names[1].startswith("magcache, ")
    assert names[2:3] + names[4:] == ["4 steps without guidance", "int8", "adapter of rank 4"]
    assert names[3].startswith("4 videos together, ")
    assert "all steps" in lines[0]
    assert "x1.00 (1.00 to 1.00)" in lines[0]


def test_a_layout_that_the_devices_are_too_few_for(capsys):
    assert main(["steps", *SMALL, "--layout", "dp64"]) == 2
    assert "64" in capsys.readouterr().err
