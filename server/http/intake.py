"""Reads a body, JSON or multipart, into checked fields, pictures and clips.

In dependencies, since FastAPI reads a body that a route declares before it asks for the key.
"""

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from server.errors import SHOWN_CHARACTERS, ApiError
from server.http.answers import unknown_field
from server.http.bodies import (
    FORM,
    JSON,
    Making,
    VideoCreate,
    VideoEdit,
    VideoExtend,
    VideoRemix,
)
from server.http.dependencies import ModelsDependency
from server.http.flat_json import parse_json
from server.http.form import read_form
from server.http.reference import Reference, id_of, is_left_out, read_reference
from server.http.served_models import ServedModels

LARGE_BYTES = 1 << 17
"""Of a body that holds a picture in base64: others are to be answered while it is parsed."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What a client sent.

    Attributes:
        body: the fields; of a picture or clip the digest, of a video by its id that.
        references: the pictures and clips, by the field that they came in.
        video_id: of the video that `video` names, if it names one.
    """

    body: Making
    references: Mapping[str, Reference]
    video_id: str | None = None


async def read_create(request: Request, models: ModelsDependency) -> Sent:
    """The body of `POST /v1/videos`: see `_read`."""
    return await _read(request, models, VideoCreate)


async def read_remix(request: Request, models: ModelsDependency) -> Sent:
    """The body of `POST /v1/videos/{video_id}/remix`: see `_read`."""
    return await _read(request, models, VideoRemix)


async def read_edit(request: Request, models: ModelsDependency) -> Sent:
    """The body of `POST /v1/videos/edits`: see `_read`."""
    return await _read(request, models, VideoEdit)


async def read_extend(request: Request, models: ModelsDependency) -> Sent:
    """The body of `POST /v1/videos/extensions`: see `_read`."""
    return await _read(request, models, VideoExtend)


SentVideo = Annotated[Sent, Depends(read_create)]
SentRemix = Annotated[Sent, Depends(read_remix)]
SentEdit = Annotated[Sent, Depends(read_edit)]
SentExtend = Annotated[Sent, Depends(read_extend)]


def digest(sent: Sent, *context: str) -> str:
    """The same for the same fields, however they were sent.

    Args:
        sent: by the client.
        context: what else tells requests apart: the route, the video of its path.
    """
    fields: Any = sent.body.model_dump(exclude_none=True)
    text = json.dumps([*context, fields] if context else fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


async def _read(request: Request, models: ServedModels, kind: type[Making]) -> Sent:
    """The body, checked.

    Raises:
        ApiError: it is of another type, malformed, or has a picture that the model does not take.
        RequestValidationError: a field is wrong.
    """
    fields = await _fields(request, models, kind)
    references: dict[str, Reference] = {}
    video_id = None
    for name, takes_id in kind.FILES.items():
        value = fields.pop(name, None)
        if is_left_out(value):
            continue
        if takes_id and (found := id_of(value)) is not None:
            fields[name] = video_id = str(found)
            continue
        reference = await asyncio.to_thread(
            read_reference, name, value, max_bytes=models.max_upload_bytes
        )
        references[name], fields[name] = reference, reference.digest
    return Sent(body=_validated(kind, fields), references=references, video_id=video_id)


async def _fields(request: Request, models: ServedModels, kind: type[Making]) -> dict[str, Any]:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    match content_type:
        case "application/json":
            body = await request.body()
            if len(body) > LARGE_BYTES:
                return await asyncio.to_thread(parse_json, body, kind)
            return parse_json(body, kind)
        case "multipart/form-data":
            return await read_form(request, kind, max_text_bytes=models.max_text_bytes)
        case _:
            raise ApiError(
                415,
                "unsupported_media_type",
                f"the body must be {JSON} or {FORM}, got "
                f"{content_type[:SHOWN_CHARACTERS] or 'no Content-Type'!r}",
            )


def _validated(kind: type[Making], fields: dict[str, Any]) -> Making:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    if problems[0]["type"] == "extra_forbidden":
        raise unknown_field(str(problems[0]["loc"][0]), kind.model_fields)
    raise RequestValidationError(
        [{**problem, "loc": ("body", *problem["loc"])} for problem in problems]
    )
