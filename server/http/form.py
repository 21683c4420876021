"""Reads a form of fields, pictures and clips, as OpenAI's clients and browsers send it."""

import re
from typing import Any

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from server.errors import ApiError
from server.http.bodies import Making
from server.http.flat_json import MAX_FIELDS
from server.http.lists import objects_of

_INSIDE = re.compile(r"(\w+)\[(\w*)\]")
"""How OpenAI's clients write a field of an object: `input_reference[image_url]`."""

_IN_LIST = re.compile(r"(\w+)(?:\[\])?(?:\[(\w+)\])?")
"""How they write a part of a list, or of an object in one: `sigmas[]`, `lora[][name]`; a field that
is there several times is one, too."""


async def read_form(request: Request, kind: type[Making], *, max_text_bytes: int) -> dict[str, Any]:
    """The fields of a form: text, the bytes of a file, or an object of texts.

    Args:
        request: whose body is a form.
        kind: what it is to be.
        max_text_bytes: of a field that is no file; one may hold a picture in base64.

    Raises:
        ApiError: it is malformed, not in UTF-8, or has a file or a field where none may be.
    """
    await request.body()  # kept, so that it can be looked at again
    try:
        form = await request.form(
            max_files=max(len(kind.FILES), 1), max_fields=MAX_FIELDS, max_part_size=max_text_bytes
        )
    except HTTPException as error:
        raise ApiError(400, "invalid_form", f"the form is malformed: {error.detail}") from None
    except (ValueError, LookupError) as error:  # names and charsets that cannot be decoded
        raise ApiError(400, "invalid_form", f"the form is malformed: {error}") from None
    try:
        fields = await _fields_of(form, kind)
    finally:
        await form.close()
    files = [value for value in fields.values() if isinstance(value, bytes)]
    _check_text(request.headers["content-type"], await request.body(), files)
    return fields


async def _fields_of(form: FormData, kind: type[Making]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    lists: dict[str, list[Any]] = {}
    columns: dict[str, dict[str, list[str]]] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if not value.filename and not value.size:
                continue  # what browsers send of an input where no file was chosen
            if name not in kind.FILES:
                known = " and ".join(kind.FILES) or "none here"
                message = f"{name} is a file, and the fields that take one are: {known}"
                raise ApiError(400, "unknown_field", message, param=name)
            value = await value.read()
        elif (part := _IN_LIST.fullmatch(name)) is not None and part[1] in kind.NESTED:
            if part[2] is None:
                lists.setdefault(part[1], []).append(value)
            else:
                columns.setdefault(part[1], {}).setdefault(part[2], []).append(value)
            continue
        inside = _INSIDE.fullmatch(name)
        if inside is not None and inside[1] in kind.FILES:
            within = fields.setdefault(inside[1], {})
            if isinstance(within, dict) and inside[2] not in within:
                within[inside[2]] = value
                continue
            name = inside[1]
        if name in fields:
            raise ApiError(400, "invalid_value", f"{name} is there more than once", param=name)
        fields[name] = value
    return fields | _lists_of(lists, columns)


def _lists_of(
    lists: dict[str, list[Any]], columns: dict[str, dict[str, list[str]]]
) -> dict[str, Any]:
    """The fields that came in parts; one part alone is what it says, for it may be all.

    Raises:
        ApiError: it cannot be told what belongs together.
    """
    for name, keys in columns.items():
        try:
            lists.setdefault(name, []).extend(objects_of(keys))
        except ValueError:
            message = (
                f"not every object of {name} has the same keys in this form, so that nobody knows "
                f"what belongs together; send {name} as text, for example a.safetensors:0.8,"
                "b.safetensors, or as one text of JSON"
            )
            raise ApiError(400, "invalid_value", message, param=name) from None
    return {name: list_[0] if len(list_) == 1 else list_ for name, list_ in lists.items()}


def _check_text(content_type: str, body: bytes, files: list[bytes]) -> None:
    """Refuses a form whose text is not UTF-8, which would be mangled, or that lacks its end."""
    _, options = parse_options_header(content_type)
    if options.get(b"charset", b"utf-8").lower() not in (b"utf-8", b"utf8"):
        raise ApiError(400, "invalid_form", "a form is written in UTF-8")
    for file in filter(None, files):
        before, _, after = body.partition(file)
        body = before + after
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, "invalid_form", f"the form is not UTF-8: {error}") from None
    if body and b"--" + options[b"boundary"] + b"--" not in body:
        raise ApiError(400, "invalid_form", "the form ends before its last boundary")
