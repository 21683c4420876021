"""From a preset, a TOML file and the command line to one `TrainingConfig`, and back to TOML.

Later ones win, key by key. Whatever is wrong is said with the file's line, before JAX is loaded and
before any model is looked at; `config_check` knows what does not fit together.
"""

import dataclasses
import difflib
import json
import os
import re
import textwrap
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wan_tpu.checkpoints.known import EMBEDDED, KNOWN_MODELS
from wan_tpu.errors import InputError
from wan_tpu.training import config_check, presets
from wan_tpu.training.config import TrainingConfig
from wan_tpu.training.config_keys import KEYS, TABLES, Key, kind_of_table, nearest, tables_of
from wan_tpu.training.config_values import read_text, read_value, shown_name

LARGEST_BYTES = 2**20
"""Of a file: a thousand prompts are a tenth of it, and weights by mistake are more."""

COMMAND_LINE = "the command line"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Some keys, and where they stand.

    Attributes:
        name: what messages call it.
        values: by key.
        text: of the file; empty for the command line.
        is_preset: keys of a preset that mean nothing any more are passed over.
    """

    name: str
    values: dict[Key, Any]
    text: str = ""
    is_preset: bool = False

    def where(self, key: Key) -> str:
        """`lora.toml, line 4`."""
        line = _line_of(self.text, key.table, key.name)
        return self.name if line is None else f"{self.name}, line {line}"


def read_config(
    file: str | os.PathLike[str] | None = None,
    *,
    preset: str | None = None,
    settings: Sequence[str] = (),
    needs_data: bool = True,
) -> TrainingConfig:
    """The whole configuration, checked as far as it can be without the model.

    Paths of a file are relative to its folder, those of the command line to the current one; the
    result's are absolute.

    Args:
        file: TOML; may begin with `preset = "name"`.
        preset: a name of `wan_tpu.training.presets`, where no file names one.
        settings: `table.key=value`, of the command line; the last of several counts.
        needs_data: whether `data.path` must be there.

    Raises:
        InputError: a file that cannot be read or is no TOML; a table, key or preset that does not
            exist; a value of another type or out of range; keys that do not fit together.
    """
    sources: list[_Source] = []
    if file is not None:
        sources, preset = _read_file(Path(file), preset)
    if preset is not None:
        sources.insert(0, _read_preset(preset))
    sources.append(_read_settings(settings))
    config = _merge(sources)
    _check_in_use(config, sources)
    name = COMMAND_LINE if file is None else shown_name(os.fspath(file))
    try:
        config_check.check_alone(config, needs_data=needs_data)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    return config


def to_toml(config: TrainingConfig) -> str:
    """The configuration as TOML, whole, each key with what it is; `read_config` reads it back.

    Tables that mean nothing for this kind of training are left out; a key that is left open is a
    comment.
    """
    lines = ["# Everything that decides this training. Written by wan-tpu train."]
    for table in tables_of(config.train.trains):
        lines += ["", f"[{table}]"]
        for key in KEYS[table].values():
            value = getattr(getattr(config, table), key.name)
            lines += textwrap.wrap(key.words, 96, initial_indent="# ", subsequent_indent="# ")
            lines.append(f"{key.name} = {toml_value(value)}")
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """A value of a configuration as TOML."""
    if value is None:
        return '"none"'
    if isinstance(value, tuple):
        return f"[{', '.join(toml_value(each) for each in value)}]"
    if isinstance(value, str):
        # JSON's escapes are TOML's; but one control character stands unescaped in JSON alone.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _read_file(path: Path, preset: str | None) -> tuple[list[_Source], str | None]:
    """The file's keys, and the preset that it or the command line names."""
    name = shown_name(os.fspath(path))
    text = _text_of(path)
    tables = _parse(name, text)
    named = tables.pop("preset", None)
    if named is not None:
        line = _line_of(text, None, "preset")
        where = name if line is None else f"{name}, line {line}"
        if preset is not None:
            raise InputError(f"{where}: the command line names a preset, too; give one of them")
        if not isinstance(named, str):
            raise InputError(f"{where}: preset must be a text, got {named!r}")
        try:
            presets.preset_text(named)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        preset = named
    values = _values(name, text, tables)
    return [_Source(name=name, values=_absolute(values, path.parent), text=text)], preset


def _text_of(path: Path) -> str:
    name = shown_name(os.fspath(path))
    if path.is_dir():
        raise InputError(f"{name} is a folder; give a TOML file, or a run folder to go on with it")
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
    except FileNotFoundError:
        raise InputError(
            f"there is no file {name}; give a TOML file, or --preset with one of "
            f"{', '.join(presets.preset_names())}"
        ) from None
    except (OSError, ValueError) as error:  # a name with a NUL is a ValueError
        what = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{name} cannot be read: {what}") from None
    if len(data) > LARGEST_BYTES:
        raise InputError(f"{name} has more than {LARGEST_BYTES} bytes; it is no training's file")
    try:
        return data.decode("utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{name}, line {line}: this is no UTF-8 text") from None


def _parse(name: str, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text.replace("\r\n", "\n"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{name} is no TOML: {error}") from None


def _read_preset(name: str) -> _Source:
    text = presets.preset_text(name)
    values = _values(f"preset {name}", text, tomllib.loads(text))
    return _Source(name=f"preset {name}", values=values, text=text, is_preset=True)


def _values(name: str, text: str, tables: dict[str, Any]) -> dict[Key, Any]:
    """The values of a file by key, each of its type."""
    found = {}
    for table, entries in tables.items():
        if table not in TABLES:
            raise InputError(f"{_at(name, text, table)}: {_unknown_table(table)}")
        if not isinstance(entries, dict):
            raise InputError(f"{_at(name, text, table)}: {table} is a table: write [{table}]")
        for key_name, value in entries.items():
            where = _at(name, text, table, key_name)
            try:
                key = _key(table, key_name)
                found[key] = read_value(key, value)
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
    return found


def _read_settings(settings: Sequence[str]) -> _Source:
    found = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        table, dot, name = path.strip().partition(".")
        if not equals or not dot:
            raise InputError(
                f"a setting is table.key=value, for example train.steps=200, got "
                f"{shown_name(setting)}"
            )
        if table not in TABLES:
            raise InputError(f"{COMMAND_LINE}: {_unknown_table(table)}")
        try:
            key = _key(table, name)
            found[key] = read_text(key, text.strip())
        except InputError as error:
            raise InputError(f"{COMMAND_LINE}: {error}") from None
    return _Source(name=COMMAND_LINE, values=_absolute(found, Path.cwd()))


def _key(table: str, name: str) -> Key:
    if name in KEYS[table]:
        return KEYS[table][name]
    if name == "preset":
        raise InputError("preset stands above the first table")
    raise InputError(f"unknown key {name} in [{table}]; {_meant(table, name)}")


def _meant(table: str, name: str) -> str:
    """What an unknown key is likely to be: one of another table, or one that is written so."""
    elsewhere = [other for other in TABLES if name in KEYS[other]]
    if elsewhere:
        return f"it is a key of [{elsewhere[0]}]"
    if difflib.get_close_matches(name, KEYS[table]):
        return nearest(name, KEYS[table])
    by_name = {name: str(key) for keys in KEYS.values() for name, key in keys.items()}
    close = difflib.get_close_matches(name, by_name, n=1)
    return f"nearest: {by_name[close[0]]}" if close else nearest(name, KEYS[table])


def _unknown_table(table: str) -> str:
    homes = [home for home in TABLES if table in KEYS[home]]
    hint = f"it is a key of [{homes[0]}]" if homes else nearest(table, [*TABLES, "preset"])
    return f"unknown table {table}; {hint}"


def _absolute(values: dict[Key, Any], folder: Path) -> dict[Key, Any]:
    """The values with their paths absolute."""
    for key, value in values.items():
        if str(key) == "data.path" and value:
            values[key] = os.path.abspath(folder / os.path.expanduser(value))
        if str(key) == "model.name" and _is_path(value, folder):
            values[key] = os.path.abspath(folder / os.path.expanduser(value))
    return values


def _is_path(model: str, folder: Path) -> bool:
    """Whether a model's name is a folder or file, and not a known model's or a hub id."""
    if not model or model in (*EMBEDDED, *KNOWN_MODELS):
        return False
    return model.startswith((".", "~")) or os.path.exists(folder / model)


def _merge(sources: list[_Source]) -> TrainingConfig:
    """One value of all; what a class says of a value is said with the value's place."""
    chosen = {key: value for source in sources for key, value in source.values.items()}
    tables = {}
    for table, cls in TABLES.items():
        given = {key.name: value for key, value in chosen.items() if key.table == table}
        try:
            tables[table] = cls(**given)
        except InputError as error:
            guilty = _guilty(cls, given)
            where = next(
                (s.where(KEYS[table][name]) for s in reversed(sources) for name in guilty
                 if KEYS[table][name] in s.values),
                f"[{table}]",
            )  # fmt: skip
            about = "" if f"{table}." in str(error) else f"[{table}] "
            raise InputError(f"{where}: {about}{error}") from None
    return TrainingConfig(**tables)


def _guilty(cls: type, given: dict[str, Any]) -> list[str]:
    """The keys whose value alone is refused; all of them where only several together are."""

    def is_refused(name: str) -> bool:
        try:
            cls(**{name: given[name]})
        except InputError:
            return True
        return False

    return [name for name in given if is_refused(name)] or list(given)


def _check_in_use(config: TrainingConfig, sources: list[_Source]) -> None:
    """Refuses keys that somebody wrote and that would change nothing."""
    trains = config.train.trains
    used = tables_of(trains)
    for source in sources:
        for key in source.values:
            if key.table not in used and not source.is_preset:
                raise InputError(
                    f'{source.where(key)}: {key} is for train.trains = "'
                    f'{kind_of_table(key.table)}", and it is "{trains}"; leave it out'
                )


def _at(name: str, text: str, table: str, key: str | None = None) -> str:
    line = _line_of(text, table, key)
    return name if line is None else f"{name}, line {line}"


def _line_of(text: str, table: str | None, key: str | None) -> int | None:
    """The line of a key, or of a table's head; None where it is written in another way.

    A hint for messages: it reads heads and keys, not all of TOML.
    """
    current = None
    for number, line in enumerate(text.splitlines(), 1):
        head = re.match(r"""\s*\[+\s*["']?([^"'\]]+?)["']?\s*\]""", line)
        if head:
            current = head[1]
            if key is None and current == table:
                return number
            continue
        left = re.match(r"""\s*["']?([\w.-]+)["']?\s*=""", line)
        if left and _names(left[1], current, table, key):
            return number
    return None


def _names(left: str, current: str | None, table: str | None, key: str | None) -> bool:
    """Whether what stands left of = in a table is the key, or the table itself."""
    whole = left if current is None else f"{current}.{left}"
    wanted = ".".join(part for part in (table, key) if part)
    return whole == wanted or (current is None and left == table)
