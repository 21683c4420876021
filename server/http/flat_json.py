"""Reads a body of JSON: one object of a few fields. Any other is refused before it is parsed.

Parsing a hundred thousand objects that no field takes would hold everybody up.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from server.errors import ApiError
from server.http.answers import unknown_field
from server.http.bodies import EXPECTED, Making
from server.http.lists import MOST_CHARACTERS

MAX_FIELDS = 64

_QUOTE_OR_BRACKET = re.compile(rb'["\[\]{}]')

SHOWN_BYTES = 200
"""Of a text of JSON that a message may need: names of fields are shorter."""


def parse_json(body: bytes, kind: type[Making]) -> dict[str, Any]:
    """The fields of a body, as they were written.

    Args:
        body: text of JSON.
        kind: what it is to be; only fields that take a file may hold an object.

    Raises:
        ApiError: it is no JSON, or not one object of such fields.
    """
    check_flat(body, kind)
    try:
        fields = json.loads(
            body.decode("utf-8-sig"),
            parse_constant=_refuse_constant,
            object_pairs_hook=_refuse_repetition,
        )
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "invalid_json", 'the body must be a JSON object, {"prompt": "..."}')
    return fields


def check_flat(body: bytes, kind: type[Making]) -> None:
    """Refuses what is not one object of texts, numbers and nulls, before it is parsed.

    But of the fields that hold more: a file in an object, a list of numbers or of adapters.

    Raises:
        ApiError: it is something else; names the field that is to blame.
    """
    texts, name, field, begin = 0, b'""', "", 0
    opened: list[str] = []
    for start, end in _spans_of(body):
        token = body[start:end]
        if token.startswith(b'"'):
            texts += 1
            name = name if len(opened) > 1 else token
            if texts > 2 * MAX_FIELDS:
                message = f"the body has more than {MAX_FIELDS} fields"
                raise ApiError(400, "invalid_json", message)
            continue
        if len(opened) > 1:
            _check_length(field, end - begin, kind)
        if token in b"[{":
            if len(opened) == 1:
                field, begin = _field_named(name, kind), start
            opened.append(token.decode())
            _check_nesting("".join(opened), field, name, kind)
        elif len(opened) > 1:
            opened.pop()
    if len(opened) > 1:
        _check_length(field, len(body) - begin, kind)


def _field_named(name: bytes, kind: type[Making]) -> str:
    """The field of this name, if it holds lists or objects."""
    return next((f for f in (*kind.FILES, *kind.NESTED) if name == b'"%s"' % f.encode()), "")


def _check_nesting(opened: str, field: str, name: bytes, kind: type[Making]) -> None:
    """Refuses a bracket where none may be.

    Args:
        opened: all that are open, with this one.
        field: that holds it, of those that hold lists or objects.
        name: as the body writes the field.
        kind: of the body.
    """
    what = "a list" if opened[-1] == "[" else "an object"
    if opened == "[":
        message = 'the body must be a JSON object, {"prompt": "..."}, got a list'
        raise ApiError(400, "invalid_json", message)
    if opened == "{" or opened[1:] in kind.NESTED.get(field, ("{",) if field else ()):
        return
    if len(opened) == 2:
        raise _nested(name, what, kind)
    inside = "a list" if opened[-2] == "[" else "an object"
    message = f"{field} must be {EXPECTED[field]}, got {what} in {inside}"
    raise ApiError(400, "invalid_value", message, param=field)


def _check_length(field: str, length: int, kind: type[Making]) -> None:
    """Refuses a list of more bytes than any that has a meaning; a file in an object may be long."""
    if field in kind.NESTED and length > MOST_CHARACTERS:
        message = f"{field} has {length} bytes, at most {MOST_CHARACTERS} are taken"
        raise ApiError(400, "invalid_value", message, param=field)


def tokens_of(body: bytes) -> Iterator[bytes]:
    """The texts of JSON, whole or cut short, and the brackets outside of them; in linear time.

    Of a text no more than its beginning. Most of a body may be one text, a picture in base64: the
    way through it is `bytes.find`'s, since a regular expression would hold all other threads up.
    """
    return (body[start:end] for start, end in _spans_of(body))


def _spans_of(body: bytes) -> Iterator[tuple[int, int]]:
    at = 0
    while (match := _QUOTE_OR_BRACKET.search(body, at)) is not None:
        start, at = match.span()
        if match[0] == b'"':
            at = _end_of_text(body, at)
        yield start, min(at, start + SHOWN_BYTES)


def _end_of_text(body: bytes, at: int) -> int:
    """Where the text of JSON ends whose first character is at `at`, the quote included."""
    while (quote := body.find(b'"', at)) >= 0:
        before = quote
        while before > at and body[before - 1] == ord("\\"):
            before -= 1
        if (quote - before) % 2 == 0:
            return quote + 1
        at = quote + 1
    return len(body)


def _nested(name: bytes, what: str, kind: type[Making]) -> ApiError:
    """There is a list or an object inside, most likely of the field that was named before it."""
    try:
        field = json.loads(name)
    except ValueError:
        field = ""
    if field in kind.model_fields:
        message = f"{field} must be {EXPECTED[field]}, got {what}"
        return ApiError(400, "invalid_value", message, param=field)
    if field:
        return unknown_field(field, kind.model_fields)
    return ApiError(400, "invalid_json", f"the body holds {what} where no field is")


def _refuse_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_FIELDS:
        raise ValueError(f"an object has {len(pairs)} fields, at most {MAX_FIELDS} are taken")
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("an object has a field more than once")
    return fields


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
