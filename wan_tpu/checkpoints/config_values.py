"""Reads a component's JSON configuration into its dataclass, and refuses values of another type."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from wan_tpu.errors import CheckpointError

_WORDS = {
    int: "a whole number of at least 1",
    float: "a number",
    bool: "true or false",
    str: "a text",
}


def read_fields(cls: type, config: Mapping[str, Any], component: str) -> dict[str, Any]:
    """The fields of a dataclass that a configuration has, each checked against its annotation.

    Args:
        cls: a dataclass with fields of int, float, bool, str, tuples of them, or one of these or
            None.
        config: the JSON object; null is absent, other names are left alone.
        component: what messages call it, for example `transformer`.

    Raises:
        CheckpointError: a value is of another type; names it and what was expected.
    """
    kinds = typing.get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):
        value = config.get(field.name)
        if value is None:
            continue
        found[field.name] = _read(value, kinds[field.name], f"the {component}'s {field.name}")
    return found


def _read(value: Any, kind: Any, what: str) -> Any:
    if isinstance(kind, types.UnionType):
        (kind,) = (each for each in typing.get_args(kind) if each is not types.NoneType)
    if typing.get_origin(kind) is not tuple:
        if not _is_a(value, kind):
            raise CheckpointError(f"{what} must be {_WORDS[kind]}, got {value!r}")
        return value
    kinds = typing.get_args(kind)
    length = None if kinds[-1] is Ellipsis else len(kinds)
    if (
        not isinstance(value, list | tuple)
        or (length is not None and len(value) != length)
        or not all(_is_a(each, kinds[0]) for each in value)
    ):
        number = "" if length is None else f"{length} of them: "
        raise CheckpointError(f"{what} must be a list, {number}{_WORDS[kinds[0]]}; got {value!r}")
    return tuple(value)


def _is_a(value: Any, kind: type) -> bool:
    """JSON's numbers: true is none, and NaN, which Python reads, neither."""
    if kind is int:
        return type(value) is int and value >= 1
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind
