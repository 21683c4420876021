"""What `--lora` takes: a file, how much of it, and of two experts which."""

import pytest

from wan_tpu.adapters.choice import AdapterChoice
from wan_tpu.errors import InputError


@pytest.mark.parametrize(
    ("text", "path", "strength", "expert"),
    [
        ("fox.safetensors", "fox.safetensors", 1.0, None),
        ("fox.safetensors:0.8", "fox.safetensors", 0.8, None),
        ("fox.safetensors:-1", "fox.safetensors", -1.0, None),
        ("fox.safetensors:0", "fox.safetensors", 0.0, None),
        ("fox.safetensors@high", "fox.safetensors", 1.0, "high"),
        ("a/fox:3e-1@low", "a/fox", 0.3, "low"),
        ("owner/name@v1:2", "owner/name@v1", 2.0, None),
        ("owner/name@v1@high", "owner/name@v1", 1.0, "high"),
        ("c:/adapters/fox", "c:/adapters/fox", 1.0, None),
    ],
)
def test_a_choice(text, path, strength, expert):
    assert AdapterChoice.parse(text) == AdapterChoice(path=path, strength=strength, expert=expert)


def test_a_choice_as_text_is_the_same_choice():
    choice = AdapterChoice(path="a/fox", strength=0.25, expert="low")
    assert str(choice) == "a/fox:0.25@low"
    assert AdapterChoice.parse(str(choice)) == choice


def test_a_file_whose_name_is_the_whole_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fox:2@high").touch()
    assert AdapterChoice.parse("fox:2@high") == AdapterChoice(path="fox:2@high")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "fox.safetensors:strong",
            "is 'strong'; expected a number, for example fox",
        ),
        ("fox.safetensors:", "is ''; expected a number"),
        ("fox.safetensors:nan", "is nan; expected a number"),
        ("fox.safetensors:inf@high", "is inf; expected a number"),
        ("", "an adapter has no name"),
    ],
)
def test_a_choice_that_is_none(text, expected):
    with pytest.raises(InputError) as error:
        AdapterChoice.parse(text)
    assert expected in str(error.value)


def test_an_expert_that_is_none():
    with pytest.raises(InputError, match="unknown expert 'middle' of fox; known: high, low"):
        AdapterChoice(path="fox", expert="middle")
