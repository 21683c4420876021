"""Reads the body of `POST /v1/videos`, JSON or multipart, into a checked `VideoCreate`."""

import hashlib
import json
from typing import Any, NoReturn

from pydantic import ValidationError
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from server.errors import ApiError
from server.http.schemas import EXPECTED, VideoCreate

MAX_FIELDS = 64
SHOWN_CHARACTERS = 80


async def read_create(request: Request) -> VideoCreate:
    """The body, checked.

    Raises:
        ApiError: it is of another type, malformed, or a field is wrong; names the field.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    match content_type:
        case "application/json":
            fields = _parse_json(await request.body())
        case "multipart/form-data":
            fields = await _read_form(request)
        case _:
            raise ApiError(
                415,
                "unsupported_media_type",
                "the body must be application/json or multipart/form-data, got "
                f"{content_type[:SHOWN_CHARACTERS] or 'no Content-Type'!r}",
            )
    try:
        return VideoCreate.model_validate(fields)
    except ValidationError as error:
        raise _first_problem(error) from None


def digest(create: VideoCreate) -> str:
    """The same for the same fields, however they were sent."""
    text = json.dumps(create.model_dump(exclude_none=True), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _parse_json(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(
            body, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repetition
        )
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "invalid_json", 'the body must be a JSON object, {"prompt": "..."}')
    return fields


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
            await form.close()
            message = f"{name} is a file, and no field takes one: text to video only"
            raise ApiError(400, "unknown_field", message, param=name)
        if name in fields:
            raise ApiError(400, "invalid_value", f"{name} is there more than once", param=name)
        fields[name] = value
    _check_text(request.headers["content-type"], await request.body())
    return fields


def _check_text(content_type: str, body: bytes) -> None:
    """Refuses a form of text alone that is not UTF-8, which would be mangled, or lacks its end."""
    _, options = parse_options_header(content_type)
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        raise ApiError(400, "invalid_form", "a form is written in UTF-8")
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, "invalid_form", f"the form is not UTF-8: {error}") from None
    if body and b"--" + options[b"boundary"] + b"--" not in body:
        raise ApiError(400, "invalid_form", "the form ends before its last boundary")


def _first_problem(error: ValidationError) -> ApiError:
    problem = error.errors(include_url=False)[0]
    field = str(problem["loc"][0]) if problem["loc"] else None
    match problem["type"]:
        case "missing":
            return ApiError(400, "missing_field", f"{field} is missing", param=field)
        case "extra_forbidden":
            known = ", ".join(VideoCreate.model_fields)
            message = f"unknown field {str(field)[:SHOWN_CHARACTERS]!r}; known: {known}"
            return ApiError(400, "unknown_field", message, param=field)
        case _:
            name, got = field or "the name of a field", _shown(problem["input"])
            message = f"{name} must be {EXPECTED.get(name, 'text')}, got {got}"
            return ApiError(400, "invalid_value", message, param=field)


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
