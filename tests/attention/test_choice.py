"""What `--attention` says: names, and what stays exact of `flash-int8`."""

import pytest

from wan_tpu.attention.choice import Ends, Gate, parse_attention
from wan_tpu.attention.names import IMPLEMENTATIONS
from wan_tpu.errors import InputError, UnknownNameError


def test_every_name_is_a_choice_and_one_has_a_gate():
    for name in IMPLEMENTATIONS:
        choice = parse_attention(name)
        assert choice.name == name
        assert choice.gate == (Gate() if name == "flash-int8" else None)


@pytest.mark.parametrize(
    ("text", "steps", "layers", "written"),
    [
        ("flash-int8", (1, 1), (0, 0), "flash-int8:1:0"),
        ("flash-int8:5", (5, 5), (0, 0), "flash-int8:5:0"),
        ("flash-int8:0:0", (0, 0), (0, 0), "flash-int8:0:0"),
        ("flash-int8:12+2:1+0", (12, 2), (1, 0), "flash-int8:12+2:1+0"),
    ],
)
def test_steps_and_layers_come_in_this_order(text, steps, layers, written):
    choice = parse_attention(text)
    first, last = steps
    assert choice.gate is not None
    assert choice.gate.steps == Ends(first=first, last=last)
    assert choice.gate.layers == Ends(first=layers[0], last=layers[1])
    assert str(choice) == written
    assert parse_attention(written) == choice


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("flash:1:1", ["flash is exact everywhere", "flash-int8[:STEPS[:LAYERS]]"]),
        ("flash-int8:", ["flash-int8[:STEPS[:LAYERS]]", "flash-int8:3+1:0"]),
        ("flash-int8:1:1:1", ["flash-int8:2:1"]),
        ("flash-int8:-1", ["flash-int8:2:1"]),
        ("flash-int8:1-2", ["flash-int8:3+1:0"]),
        ("flash-int8:²", ["flash-int8:2:1"]),
        ("flash-int8:steps=2", ["flash-int8:2:1"]),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(text, words):
    with pytest.raises(InputError) as refused:
        parse_attention(text)
    assert all(word in str(refused.value) for word in [repr(text), *words])
    assert "\n" not in str(refused.value)


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(UnknownNameError, match=r"'int8'; known: auto, .*flash-int8"):
        parse_attention("int8:2")


def test_ends_of_a_row():
    assert Ends(first=2, last=1).exact(5) == (True, True, False, False, True)
    assert Ends(first=0, last=0).exact(3) == (False, False, False)
    assert Ends(first=2, last=2).exact(3) == (True, True, True)
    assert Ends(first=9, last=0).exact(2) == (True, True)
