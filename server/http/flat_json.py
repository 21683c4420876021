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
    """Refuses what is not one object of a few texts, numbers and nulls, before it is parsed.

    Raises:
        ApiError: it is something else; names the field that is to blame.
    """
    depth, texts, name, field = 0, 0, b'""', ""
    for token in tokens_of(body):
        if token.startswith(b'"'):
            name, texts = token, texts + 1
            if texts > 2 * MAX_FIELDS:
                message = f"the body has more than {MAX_FIELDS} fields"
                raise ApiError(400, "invalid_json", message)
        elif token in b"[{":
            if depth > 1:
                message = f"{field} must be {EXPECTED[field]}, got lists or objects in an object"
                raise ApiError(400, "invalid_value", message, param=field)
            field = next((each for each in kind.FILES if name == b'"%s"' % each.encode()), "")
            if depth and not (field and token == b"{"):
                raise _nested(name, "a list" if token == b"[" else "an object", kind)
            if token == b"[":
                message = 'the body must be a JSON object, {"prompt": "..."}, got a list'
                raise ApiError(400, "invalid_json", message)
            depth += 1
        elif depth > 1:
            depth -= 1


def tokens_of(body: bytes) -> Iterator[bytes]:
    """The texts of JSON, whole or cut short, and the brackets outside of them; in linear time.

    Of a text no more than its beginning. Most of a body may be one text, a picture in base64: the
    way through it is `bytes.find`'s, since a regular expression would hold all other threads up.
    """
    at = 0
    while (match := _QUOTE_OR_BRACKET.search(body, at)) is not None:
        start, at = match.span()
        if match[0] == b'"':
            at = _end_of_text(body, at)
        yield body[start : min(at, start + SHOWN_BYTES)]


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
