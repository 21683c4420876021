"""Errors as every route answers and documents them, and what turns an exception into one."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from server.errors import SHOWN_CHARACTERS, ApiError, shown
from server.http.bodies import EXPECTED
from server.http.dependencies import identify, video_not_found
from server.http.guard import API_PREFIX
from server.http.schemas import EXPECTED_PARAMETERS, ErrorBody

_EXPECTED = EXPECTED | EXPECTED_PARAMETERS

_DESCRIPTIONS = {
    400: "The request is wrong; `param` names the field",
    401: "The API key is missing or not known",
    403: "A page of another site sent this",
    404: "There is no such thing, or it is another key's",
    408: "The body did not arrive in time",
    409: "It is not in a state for that",
    410: "The files of the video are lost or damaged",
    413: "The body is too large",
    415: "The body is neither JSON nor multipart",
    416: "The range lies outside of the file",
    429: "Too many requests, or the queue is full; `Retry-After` says when to come again",
    503: "Not now; `Retry-After` says when to come again",
}


class Answered(Exception):
    """A dependency has the whole answer already, so that the route has nothing to do."""

    def __init__(self, response: Response):
        super().__init__(response.status_code)
        self.response = response


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route: the errors that it answers with."""
    return {
        status: {"model": ErrorBody, "description": _DESCRIPTIONS[status]} for status in statuses
    }


def add_exception_handlers(app: FastAPI) -> None:
    """Whatever is raised becomes an answer in the one shape."""

    @app.exception_handler(Answered)
    async def give(request: Request, error: Answered) -> Response:
        return error.response

    @app.exception_handler(ApiError)
    async def refuse(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def name_the_field(request: Request, error: RequestValidationError) -> Response:
        return first_problem(error).response()

    @app.exception_handler(HTTPException)
    async def explain(request: Request, error: HTTPException) -> Response:
        try:
            if request.scope["path"].startswith(API_PREFIX):
                await identify(request)  # no word about the API to who may not use it
        except ApiError as refusal:
            return refusal.response()
        return _of_the_framework(request, error).response()

    @app.exception_handler(ClientDisconnect)
    async def answer_nobody(request: Request, error: ClientDisconnect) -> Response:
        """The client went away before its body was whole: no failure of ours, and no job."""
        return ApiError(400, "body_cut_short", "the body ended before its length").response()


def first_problem(error: RequestValidationError) -> ApiError:
    """What pydantic found, in words for people."""
    problem = error.errors()[0]
    place, *names = problem["loc"]
    field = str(names[0]) if names else None
    if place == "path":
        return video_not_found(str(problem["input"]))
    match problem["type"]:
        case "missing":
            return ApiError(400, "missing_field", f"{field} is missing", param=field)
        case _:
            name, got = field or "the name of a field", shown(problem["input"])
            message = f"{name} must be {_EXPECTED.get(name, 'text')}, got {got}"
            return ApiError(400, "invalid_value", message, param=field)


def unknown_field(field: str, known: Iterable[str]) -> ApiError:
    """There is no such field in the body of a request."""
    words = f"unknown field {field[:SHOWN_CHARACTERS]!r}; known: {', '.join(known)}"
    return ApiError(400, "unknown_field", words, param=field)


def _of_the_framework(request: Request, error: HTTPException) -> ApiError:
    """What the framework refuses: unknown paths and wrong methods."""
    method, path = request.method[:20], request.scope["path"][:SHOWN_CHARACTERS]
    match error.status_code:
        case 404:
            message = f"there is nothing at {path!r}"
            if path.startswith(("/videos", "/models")):
                message += "; the API begins at /v1: give clients a base URL that ends in /v1"
            return ApiError(404, "not_found", message)
        case 405:
            allowed = ", ".join(sorted(_allowed_methods(request)))
            message = f"{path!r} takes {allowed}, not {method}"
            return ApiError(405, "method_not_allowed", message, headers={"Allow": allowed})
        case status:
            return ApiError(status, "http_error", str(error.detail))


def _allowed_methods(request: Request) -> set[str]:
    """What the routes at this path take together."""
    methods: set[str] = set()
    for route in iter_route_contexts(request.app.routes):
        pattern = getattr(route, "path_regex", None)
        if pattern is not None and pattern.match(request.scope["path"]):
            methods |= route.methods or {"GET"}  # what files take
    return methods | {"HEAD"} if "GET" in methods else methods
