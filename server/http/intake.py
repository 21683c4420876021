"""Reads the body of `POST /v1/videos`, JSON or multipart, into checked fields and a picture.

A dependency, since FastAPI reads a body that a route declares before it asks for the key.
"""

import asyncio
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, NoReturn

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from server.errors import SHOWN_CHARACTERS, ApiError
from server.http.answers import unknown_field
from server.http.dependencies import ModelDependency
from server.http.reference import FIELD, Reference, is_left_out, read_reference
from server.http.schemas import EXPECTED, VideoCreate

MAX_FIELDS = 64
JSON, FORM = "application/json", "multipart/form-data"

REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": VideoCreate.model_json_schema()} for kind in (JSON, FORM)},
    }
}
"""`openapi_extra=` of a route that takes a `SentVideo`."""

_QUOTE_OR_BRACKET = re.compile(rb'["\[\]{}]')

LARGE_BYTES = 1 << 17
"""Of a body that holds a picture in base64: others are to be answered while it is parsed."""

SHOWN_BYTES = 200
"""Of a text of JSON that a message may need: names of fields are shorter."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a client sent.

    Attributes:
        create: the fields; `input_reference` is the digest.
        reference: the picture or clip, if there is one.
    """

    create: VideoCreate
    reference: Reference | None


async def read_create(request: Request, model: ModelDependency) -> Sent:
    """The body, checked.

    Raises:
        ApiError: it is of another type, malformed, or has a picture that the model does not take.
        RequestValidationError: a field is wrong.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    match content_type:
        case "application/json":
            body = await request.body()
            if len(body) > LARGE_BYTES:
                fields = await asyncio.to_thread(_parse_json, body)
            else:
                fields = _parse_json(body)
        case "multipart/form-data":
            fields = await _read_form(request)
        case _:
            raise ApiError(
                415,
                "unsupported_media_type",
                f"the body must be {JSON} or {FORM}, got "
                f"{content_type[:SHOWN_CHARACTERS] or 'no Content-Type'!r}",
            )
    value = fields.pop(FIELD, None)
    reference = None
    if not is_left_out(value):
        model.check_takes_files()
        read = functools.partial(read_reference, value, max_bytes=model.max_upload_bytes)
        reference = await asyncio.to_thread(read)
        fields[FIELD] = reference.digest
    try:
        return Sent(create=VideoCreate.model_validate(fields), reference=reference)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise RequestValidationError(
            [{**problem, "loc": ("body", *problem["loc"])} for problem in problems]
        ) from None


SentVideo = Annotated[Sent, Depends(read_create)]


def digest(create: VideoCreate) -> str:
    """The same for the same fields, however they were sent."""
    text = json.dumps(create.model_dump(exclude_none=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _parse_json(body: bytes) -> dict[str, Any]:
    _check_flat(body)
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


def _check_flat(body: bytes) -> None:
    """Refuses what is not one object of a few texts, numbers and nulls, before it is parsed.

    Parsing a hundred thousand objects that no field takes would hold everybody up.
    """
    depth, texts, name = 0, 0, b'""'
    for token in _tokens(body):
        if token.startswith(b'"'):
            name, texts = token, texts + 1
            if texts > 2 * MAX_FIELDS:
                message = f"the body has more than {MAX_FIELDS} fields"
                raise ApiError(400, "invalid_json", message)
        elif token in b"[{":
            is_reference = depth == 1 and token == b"{" and name == b'"%s"' % FIELD.encode()
            if depth > 1:
                message = f"{FIELD} must be {EXPECTED[FIELD]}, got lists or objects in an object"
                raise ApiError(400, "invalid_value", message, param=FIELD)
            if depth and not is_reference:
                raise _nested(name, "a list" if token == b"[" else "an object")
            if token == b"[":
                message = 'the body must be a JSON object, {"prompt": "..."}, got a list'
                raise ApiError(400, "invalid_json", message)
            depth += 1
        elif depth > 1:
            depth -= 1


def _tokens(body: bytes) -> Iterator[bytes]:
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


def _nested(name: bytes, what: str) -> ApiError:
    """There is a list or an object inside, most likely of the field that was named before it."""
    try:
        field = json.loads(name)
    except ValueError:
        field = ""
    if field in VideoCreate.model_fields:
        message = f"{field} must be {EXPECTED[field]}, got {what}"
        return ApiError(400, "invalid_value", message, param=field)
    if field:
        return unknown_field(field)
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


async def _read_form(request: Request) -> dict[str, Any]:
    await request.body()  # kept, so that it can be looked at again
    try:
        form = await request.form(max_files=1, max_fields=MAX_FIELDS)
    except HTTPException as error:
        raise ApiError(400, "invalid_form", f"the form is malformed: {error.detail}") from None
    except (ValueError, LookupError) as error:  # names and charsets that cannot be decoded
        raise ApiError(400, "invalid_form", f"the form is malformed: {error}") from None
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if not value.filename and not value.size:
                continue  # what browsers send of an input where no file was chosen
            if name != FIELD:
                await form.close()
                message = f"{name} is a file, and no field but {FIELD} takes one"
                raise ApiError(400, "unknown_field", message, param=name)
            value = await value.read()
        if name in fields:
            raise ApiError(400, "invalid_value", f"{name} is there more than once", param=name)
        fields[name] = value
    await form.close()
    _check_text(request.headers["content-type"], await request.body(), fields.get(FIELD))
    return fields


def _check_text(content_type: str, body: bytes, file: str | bytes | None) -> None:
    """Refuses a form whose text is not UTF-8, which would be mangled, or that lacks its end."""
    _, options = parse_options_header(content_type)
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        raise ApiError(400, "invalid_form", "a form is written in UTF-8")
    if isinstance(file, bytes) and file:
        before, _, after = body.partition(file)
        body = before + after
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, "invalid_form", f"the form is not UTF-8: {error}") from None
    if body and b"--" + options[b"boundary"] + b"--" not in body:
        raise ApiError(400, "invalid_form", "the form ends before its last boundary")
