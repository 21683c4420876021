"""What OpenAPI says about each route beyond its response: parameters, bodies, errors."""

import re
from typing import Any

from server.http.schemas import ErrorBody, NotReady, VideoCreate

VIDEO_ID = re.compile("video_[0-9a-f]{32}")

_ERRORS = {
    400: "The request is wrong; `param` names the field",
    401: "The API key is missing or not known",
    403: "A page of another site sent this",
    404: "There is no such thing, or it is another key's",
    408: "The body did not arrive in time",
    409: "It is not in a state for that",
    413: "The body is too large",
    415: "The body is neither JSON nor multipart",
    416: "The range lies outside of the file",
    429: "Too many requests, or the queue is full; `Retry-After` says when to come again",
    503: "No jobs are taken now; `Retry-After` says when to come again",
}

_VIDEO_ID = {
    "name": "video_id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": f"^{VIDEO_ID.pattern}$"},
}
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "the same key and body gives the same job, with another body 409",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


def _query(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": "query",
        "required": False,
        "description": description,
        "schema": schema,
    }


def _route(
    operation: str,
    summary: str,
    *,
    errors: tuple[int, ...],
    parameters: tuple[dict[str, Any], ...] = (),
    responses: dict[int | str, dict[str, Any]] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    documented: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody, "description": _ERRORS[status]} for status in errors
    }
    return {
        "operation_id": operation,
        "summary": summary,
        "responses": documented | (responses or {}),
        "openapi_extra": {"parameters": list(parameters), **extra},
    }


def _content(description: str, *media_types: str) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    return {"description": description, "content": dict.fromkeys(media_types, binary)}


_EVERY = (400, 401, 429)  # Host, key, rate
_BODY = VideoCreate.model_json_schema()
_EVENT = {
    "type": "object",
    "description": "each event; its data is JSON",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string", "enum": ["video", "deleted"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
_FILES = ("video/mp4", "image/webp", "image/jpeg")

CREATE = _route(
    "createVideo",
    "Create a video",
    errors=(*_EVERY, 403, 404, 408, 409, 413, 415, 503),
    parameters=(_IDEMPOTENCY_KEY,),
    requestBody={
        "required": True,
        "content": {
            "application/json": {"schema": _BODY},
            "multipart/form-data": {"schema": _BODY},
        },
    },
)
LIST = _route(
    "listVideos",
    "List videos",
    errors=_EVERY,
    parameters=(
        _query("after", "the last id of the page before", type="string",
               pattern=f"^{VIDEO_ID.pattern}$"),
        _query("limit", "how many", type="integer", minimum=1, maximum=100, default=20),
        _query("order", "by time of creation", type="string", enum=["asc", "desc"],
               default="desc"),
    ),
)  # fmt: skip
RETRIEVE = _route(
    "retrieveVideo", "Retrieve a video", errors=(*_EVERY, 404), parameters=(_VIDEO_ID,)
)
DELETE = _route(
    "deleteVideo", "Delete a video", errors=(*_EVERY, 403, 404), parameters=(_VIDEO_ID,)
)
CANCEL = _route(
    "cancelVideo", "Cancel a video", errors=(*_EVERY, 403, 404, 409), parameters=(_VIDEO_ID,)
)
CONTENT = _route(
    "downloadVideoContent",
    "Download a video, its thumbnail or its spritesheet",
    errors=(*_EVERY, 404, 409, 416),
    parameters=(
        _VIDEO_ID,
        _query("variant", "which file", type="string",
               enum=["video", "thumbnail", "spritesheet"], default="video"),
    ),
    responses={
        200: _content("The file", *_FILES),
        206: _content("The ranges that were asked for", *_FILES, "multipart/byteranges"),
        304: {"description": "The file is the one of `If-None-Match`"},
    },
)  # fmt: skip
EVENTS = _route(
    "streamVideoEvents",
    "Follow a video",
    errors=(*_EVERY, 404),
    parameters=(_VIDEO_ID,),
    responses={
        200: {
            "description": "`event: video` with the whole object at every change; ends with the "
            "job, or with `event: deleted` and its id",
            "content": {"text/event-stream": {"schema": _EVENT}},
        }
    },
)
MODELS = _route("listModels", "List models", errors=_EVERY)
LIVE = _route("live", "Whether the server runs", errors=(400,))
READY = _route(
    "ready",
    "Whether jobs are worked on",
    errors=(400,),
    responses={503: {"model": NotReady, "description": "Not yet, or no more; says why"}},
)
METRICS = _route(
    "metrics",
    "Metrics for Prometheus",
    errors=(400,),
    responses={
        200: {"description": "Text", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
)
