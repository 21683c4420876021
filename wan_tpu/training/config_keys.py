"""The tables and keys of a training's TOML file, as `config.py` declares them. No JAX."""

import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

from wan_tpu.training import config
from wan_tpu.training.config import TrainingConfig

TABLES: dict[str, type] = typing.get_type_hints(TrainingConfig)
"""The class of each table, in the order of the file."""

_TABLE_OF = {"lora": "lora", "embedding": "embedding"}
"""By kind of training: the table that it alone has."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of the file.

    Attributes:
        table: that it stands in.
        name: in that table.
        kind: its type, without None: int, float, bool, str or a tuple of one of them.
        is_optional: whether it can be left open; text `none` does so where a preset did not.
        default: None also where it is left open.
        words: what it is, from the class's docstring.
    """

    table: str
    name: str
    kind: Any
    is_optional: bool
    default: Any
    words: str

    def __str__(self) -> str:
        return f"{self.table}.{self.name}"


def _keys_of(table: str) -> dict[str, Key]:
    cls = TABLES[table]
    hints, words = typing.get_type_hints(cls), _described(cls)
    found = {}
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        (kind,) = (part for part in parts if part is not types.NoneType)
        found[field.name] = Key(
            table=table,
            name=field.name,
            kind=kind,
            is_optional=len(parts) > 1,
            default=field.default,
            words=words.get(field.name, ""),
        )
    return found


def _described(cls: type) -> dict[str, str]:
    """What the `Attributes:` of a docstring say of each, on one line; empty under `python -OO`."""
    attributes = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE)
    # The file writes `none` where Python has None.
    return {name: re.sub(r"\bNone\b", "none", " ".join(text.split())) for name, text in entries}


KEYS: dict[str, dict[str, Key]] = {table: _keys_of(table) for table in TABLES}
"""Every key, by table and name."""


def tables_of(trains: str) -> tuple[str, ...]:
    """The tables that mean something for a kind of training, in the order of the file."""
    others = {table for kind, table in _TABLE_OF.items() if kind != trains}
    return tuple(table for table in TABLES if table not in others)


def kind_of_table(table: str) -> str | None:
    """The kind of training whose table it is alone; None for a table of all."""
    return next((kind for kind, name in _TABLE_OF.items() if name == table), None)


def in_use(whole: TrainingConfig) -> dict[str, Any]:
    """Every value that means something for the run, by `table.key`, JSON-ready."""
    return {
        f"{table}.{name}": _plain(getattr(getattr(whole, table), name))
        for table in tables_of(whole.train.trains)
        for name in KEYS[table]
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def nearest(name: str, known: Iterable[str]) -> str:
    """What was meant instead of a name that is not known, or all that are, for a message."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"nearest: {close[0]}" if close else f"known: {', '.join(names)}"


assert set(_TABLE_OF) <= set(config.TRAINS)
