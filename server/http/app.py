"""The application: routes, the page, the shape of errors, and what starts and ends with it.

FastAPI describes the routes, Starlette serves them: each reads its request itself, so FastAPI's own
way to a handler would only be longer, and clients poll.
"""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, Mount, Route

from server.errors import ApiError
from server.http import routes
from server.http.events import Streams
from server.http.guard import API_PREFIX, Guard
from server.http.served_model import serve_model
from server.service import Service
from server.web import page
from wan_tpu import __version__

DESCRIPTION = """Text to video with the Wan diffusion models. The video API of OpenAI's clients, and
beyond it more fields of a request, `cancel` and `events`. Every error has one shape."""


def make_app(service: Service) -> Starlette:
    """The application of a service.

    Raises:
        WanTpuError: the model that the settings name does not exist.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = Starlette(
        routes=[
            *routes.starlette_routes(),
            Route("/openapi.json", _document),
            Route("/", page.page),
            Route("/favicon.ico", page.icon),
            Mount("/web", page.files),
        ],
        middleware=[
            Middleware(Guard, settings=service.settings, keys=service.keys, metrics=service.metrics)
        ],
        exception_handlers={
            ApiError: _answer_api_error,
            HTTPException: _answer_http_exception,
            ClientDisconnect: _answer_nobody,
            Exception: _answer_bug,
        },
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.service = service
    app.state.model = serve_model(service.settings)
    app.state.streams = Streams(service.board)
    app.state.document = make_document(with_keys=service.keys is not None)
    return app


def make_document(*, with_keys: bool) -> dict[str, Any]:
    """The OpenAPI document."""
    description = FastAPI(title="wan-tpu", version=__version__, description=DESCRIPTION)
    description.include_router(routes.router)
    document = description.openapi()
    if with_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values() if path.startswith(API_PREFIX) else ():
                operation["security"] = [{"key": []}]
    return document


async def _document(request: Request) -> Response:
    return JSONResponse(request.app.state.document)


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """What the framework refuses: unknown paths and wrong methods."""
    assert isinstance(error, HTTPException)
    method, path = request.method[:20], request.scope["path"][:80]
    match error.status_code:
        case 404:
            return ApiError(404, "not_found", f"there is nothing at {path!r}").response()
        case 405:
            allowed = ", ".join(sorted(_allowed_methods(request)))
            message = f"{path!r} takes {allowed}, not {method}"
            headers = {"Allow": allowed}
            return ApiError(405, "method_not_allowed", message, headers=headers).response()
        case status:
            return ApiError(status, "http_error", str(error.detail)).response()


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """The client went away before its body was whole: no failure of ours, and no job."""
    return ApiError(400, "body_cut_short", "the body ended before its length").response()


async def _answer_bug(request: Request, error: Exception) -> Response:
    """The traceback goes to the log, not to the client."""
    message = "the server failed to answer; its log says more"
    return ApiError(500, "internal_error", message).response()


def _allowed_methods(request: Request) -> set[str]:
    """What the routes at this path take together."""
    methods: set[str] = set()
    for route in request.app.routes:
        if isinstance(route, Route) and route.matches(request.scope)[0] != Match.NONE:
            methods |= route.methods or set()
    return methods or {"GET", "HEAD"}  # what files take
