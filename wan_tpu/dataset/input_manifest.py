"""Manifests that name files and captions: JSON lines, a JSON list, CSV and TSV.

Fields have the names that people give them; which, a manifest's reader may be told. A line that
cannot be used is a finding and does not stop the others.
"""

import csv
import io
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from wan_tpu.dataset.entry import Columns, Entry, Kind, Listing, decode_text, kind_of_file
from wan_tpu.dataset.faults import Finding
from wan_tpu.dataset.stored_frames import stored_caption
from wan_tpu.errors import InputError

PATH_COLUMNS = (
    "video_path", "file_name", "image_path", "video", "image", "path", "npz_path", "npz",
    "frames_path", "frames", "file", "media_path",
)  # fmt: skip
CAPTION_COLUMNS = ("caption", "prompt", "text", "cap")
FPS_COLUMNS = ("fps", "frame_rate", "video_fps")
"""Usual names of fields, of which a line may have one each. The frame rate is asked of stored
frames alone: clips have times."""


class _LineError(ValueError):
    """A line that cannot be used."""


def read_manifest(path: pathlib.Path, columns: Columns) -> Listing:
    """Reads a manifest.

    Args:
        path: by its suffix JSON lines, a JSON list, CSV or TSV.
        columns: its fields; None in them for the usual names.

    Raises:
        InputError: it cannot be read as a whole.
    """
    rows = _rows(path)
    entries: list[Entry] = []
    findings: list[Finding] = []
    seen: dict[tuple[pathlib.Path, str | None], str] = {}
    clips: dict[pathlib.Path, str] = {}
    for where, row in rows:
        source = f"{path.name} {where}"
        try:
            found = list(_entries(path.parent, source, row, columns))
        except _LineError as error:
            findings.append(Finding(name=source, kind="line", words=str(error)))
            continue
        for each in found:
            if isinstance(each, Finding):
                findings.append(each)
                continue
            key = os.path.normpath(each.path), each.caption
            before = seen.setdefault(key, source)  # pyright: ignore[reportArgumentType]
            if before != source:
                words = f"{each.name} with this caption stands in {before}, too: one is enough"
                findings.append(Finding(name=source, kind="same-line", words=words))
                continue
            first = clips.setdefault(each.path, source)
            if first != source:
                words = f"{first} has another caption for it; each is learnt"
                findings.append(Finding(name=each.name, kind="same-clip", words=words))
            entries.append(each)
    return Listing(path=path, entries=tuple(entries), findings=tuple(findings))


def _entries(
    folder: pathlib.Path, source: str, row: Any, columns: Columns
) -> Iterator[Entry | Finding]:
    """What a line is about: an entry for each caption, and findings.

    Raises:
        _LineError: it names no file.
    """
    if isinstance(row, Exception):
        raise _LineError(str(row))
    if not isinstance(row, Mapping):
        raise _LineError(f"an object with a path and a caption is expected, got {_shown(row)}")
    column, given = _field(row, columns.path, PATH_COLUMNS, "path")
    if not isinstance(given, str) or not given.strip():
        raise _LineError(f"{column} must be the path of a file, got {_shown(given)}")
    path, name, findings = _located(folder, given.strip())
    yield from findings
    try:
        kind = kind_of_file(path)
    except (OSError, ValueError) as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        why = getattr(error, "strerror", None) or str(error)
        words = f"{source}: it is not there" if missing else f"{source}: it cannot be read: {why}"
        if missing and "\\" in name:
            words += "; folders are joined by /"
        yield Finding(name=name, kind="missing" if missing else "unreadable", words=words)
        return
    if kind is None:
        words = f"{source}: it is neither a clip, a picture nor an .npz file of frames"
        yield Finding(name=name, kind="not-media", words=words)
        return
    fps = _fps(row) if kind is Kind.FRAMES else None
    captions = _captions(row, columns)
    if kind is Kind.FRAMES and captions == [None]:
        captions = [stored_caption(path)]
    for caption in captions:
        yield Entry(path=path, name=name, caption=caption, kind=kind, source=source, fps=fps)


def _field(
    row: Mapping[str, Any], named: str | None, usual: tuple[str, ...], what: str
) -> tuple[str, Any]:
    """A field's name and value.

    Raises:
        _LineError: it has none, or several that differ.
    """
    if named is not None:
        if named not in row:
            raise _LineError(f"it has no field {named!r}, only {', '.join(map(repr, row))}")
        return named, row[named]
    found = [name for name in usual if row.get(name) not in (None, "")]
    if not found:
        raise _LineError(
            f"it has no {what}: one of {', '.join(usual)} is looked for, or --columns {what}=NAME, "
            f"and it has {', '.join(map(repr, row)) or 'no field'}"
        )
    if any(row[name] != row[found[0]] for name in found):
        raise _LineError(
            f"{' and '.join(found)} differ; say which is meant: --columns {what}={found[0]}"
        )
    return found[0], row[found[0]]


def _located(folder: pathlib.Path, given: str) -> tuple[pathlib.Path, str, list[Finding]]:
    """The file, its name, and what is worth knowing of its path."""
    if "\0" in given:
        raise _LineError("a path cannot have a zero byte")
    path = pathlib.Path(given)
    if path.is_absolute():
        words = "the path begins at the root: on another machine the manifest may not find it"
        return path, given, [Finding(name=given, kind="absolute-path", words=words)]
    name = pathlib.PurePath(os.path.normpath(given)).as_posix()
    if name.startswith("../"):
        words = "the path leads out of the manifest's folder: it does not move with it"
        return folder / path, name, [Finding(name=name, kind="outside", words=words)]
    return folder / path, name, []


def _captions(row: Mapping[str, Any], columns: Columns) -> list[str | None]:
    """Those of a line; None for none.

    Raises:
        _LineError: it has something else than texts, or a field is named that it lacks.
    """
    if columns.caption is None and not any(name in row for name in CAPTION_COLUMNS):
        return [None]
    if columns.caption is None and all(row.get(n) in (None, "", []) for n in CAPTION_COLUMNS):
        return [""]
    column, given = _field(row, columns.caption, CAPTION_COLUMNS, "caption")
    several = given if isinstance(given, list) else [given]
    if not several or not all(isinstance(each, str) for each in several):
        raise _LineError(f"{column} must be a text, or a list of some, got {_shown(given)}")
    return [each.strip() for each in dict.fromkeys(several)]


def _fps(row: Mapping[str, Any]) -> float | None:
    """The frame rate of stored frames, where a line says it."""
    for name in FPS_COLUMNS:
        if row.get(name) in (None, ""):
            continue
        try:
            value = float(row[name])
        except (TypeError, ValueError):
            value = math.nan
        if not 0 < value <= 1000:
            raise _LineError(f"{name} must be frames per second, got {_shown(row[name])}")
        return value
    return None


def _rows(path: pathlib.Path) -> list[tuple[str, Any]]:
    """Lines with what they hold: an object, or the exception that reading it gave.

    Raises:
        InputError: the file cannot be read as a whole.
    """
    try:
        text = decode_text(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    suffix = path.suffix.lower()
    rows = {".csv": _csv_rows, ".tsv": _tsv_rows, ".json": _json_rows}.get(suffix, _jsonl_rows)(
        path, text
    )
    if not rows:
        raise InputError(f"{path} names nothing: it has no line with a file")
    return rows


def _jsonl_rows(path: pathlib.Path, text: str) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            rows.append((f"line {number}", _json(line)))
    return rows


def _json(text: str) -> Any:
    """What a text holds, or the reason why it cannot be read."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return ValueError(f"it is not JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or too deep
        return ValueError(f"it is not JSON that can be read: {error}")


def _json_rows(path: pathlib.Path, text: str) -> list[tuple[str, Any]]:
    value = _json(text)
    if isinstance(value, ValueError):
        hint = "; one object a line is .jsonl" if "Extra data" in str(value) else ""
        raise InputError(f"{path} cannot be read: {value}{hint}")
    if not isinstance(value, list):
        raise InputError(f"{path} must be a list of objects with a path and a caption")
    return [(f"entry {number}", row) for number, row in enumerate(value, 1)]


def _csv_rows(path: pathlib.Path, text: str, delimiter: str = ",") -> list[tuple[str, Any]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[str, Any]] = []
    header: list[str] = []
    begin = 1
    try:
        for fields in reader:
            where, begin = f"line {begin}", reader.line_num + 1
            if not any(field.strip() for field in fields):
                continue
            if not header:
                header = [field.strip() for field in fields]
                _check_header(path, header)
            elif len(fields) != len(header):
                words = f"it has {len(fields)} fields and the header {len(header)}"
                hint = "; a field with commas stands in quotes" if len(fields) > len(header) else ""
                rows.append((where, ValueError(words + hint)))
            else:
                rows.append((where, dict(zip(header, fields, strict=True))))
    except csv.Error as error:
        raise InputError(f"{path} cannot be read: line {reader.line_num}: {error}") from None
    return rows


def _tsv_rows(path: pathlib.Path, text: str) -> list[tuple[str, Any]]:
    return _csv_rows(path, text, "\t")


def _check_header(path: pathlib.Path, header: list[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InputError(f"{path} has several columns {', '.join(map(repr, twice))}")


def _shown(value: Any) -> str:
    """A value in a message, not longer than it helps."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:60]}..."
