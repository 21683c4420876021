"""One value of a training's configuration: its type, from TOML or from the command line. No JAX."""

import math
import tomllib
import typing
from typing import Any

from wan_tpu.errors import InputError
from wan_tpu.training.config_keys import Key

OPEN = "none"
"""The text that leaves an optional key open: TOML has no word for it."""

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
_PLURAL = {float: "numbers", str: "texts"}
_EXAMPLES = {int: "4", float: "0.5", bool: "true", str: '"text"'}


def read_value(key: Key, value: Any) -> Any:
    """A value as TOML gave it, in the type of its key.

    Args:
        key: that it stands at.
        value: a text, number, truth value or list of them.

    Raises:
        InputError: it is of another type; says what came, what was expected and an example.
    """
    if key.is_optional and value == OPEN:
        return None
    if typing.get_origin(key.kind) is tuple:
        return _read_list(key, value)
    if not _is_a(value, key.kind):
        raise InputError(
            f"{key} must be {_WORDS[key.kind]}, got {_shown(value)}; for example "
            f"{_EXAMPLES[key.kind]}"
        )
    return _as(value, key.kind)


def read_text(key: Key, text: str) -> Any:
    """A value as the command line has it: TOML, or a text without quotes.

    Raises:
        InputError: it is not of the key's type, or has no UTF-8.
    """
    try:
        value = tomllib.loads(f"value = {text}\n")
    except tomllib.TOMLDecodeError:
        return read_value(key, text)
    if key.kind is str and not isinstance(value["value"], str):
        return read_value(key, text)  # a folder called 7
    if len(value) > 1:  # the text had a line of its own
        return read_value(key, text)
    return read_value(key, value["value"])


def _read_list(key: Key, value: Any) -> tuple[Any, ...]:
    kinds = typing.get_args(key.kind)
    length = None if kinds[-1] is Ellipsis else len(kinds)
    if (
        not isinstance(value, list)
        or (length is not None and len(value) != length)
        or not all(_is_a(each, kinds[0]) for each in value)
    ):
        number = "" if length is None else f"{length} "
        example = ", ".join([_EXAMPLES[kinds[0]]] * (length or 1))
        raise InputError(
            f"{key} must be a list of {number}{_PLURAL[kinds[0]]}, got {_shown(value)}; for "
            f"example [{example}]"
        )
    return tuple(_as(each, kinds[0]) for each in value)


def _is_a(value: Any, kind: type) -> bool:
    """TOML's types: true is no number, and neither are nan and inf, which it can write."""
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is str and isinstance(value, str):
        return _has_utf8(value)
    return type(value) is kind


def _as(value: Any, kind: type) -> Any:
    return float(value) if kind is float else value


def _has_utf8(text: str) -> bool:
    """Half a surrogate pair, which an argument of the command line can hold, has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    """What came, as TOML writes it, in a message's length."""
    if isinstance(value, dict):
        return "a table"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def shown_name(name: str) -> str:
    """A file's name or an argument for a message; bytes that are no text become escapes."""
    return name if _has_utf8(name) else ascii(name)
