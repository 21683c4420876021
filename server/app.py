"""The application: routes, the page, the shape of errors, and what starts and ends with it."""

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from server import routes, web_page
from server.errors import ApiError
from server.guard import Guard
from server.service import Service
from wan_tpu import __version__

DESCRIPTION = """Text to video with the Wan diffusion models. The video API of OpenAI's clients, and
beyond it more fields of a request, `cancel` and `events`. Every error has one shape."""


def make_app(service: Service) -> FastAPI:
    """The application of a service."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="wan-tpu",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # its page loads its code from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.include_router(routes.router)
    app.include_router(web_page.router)
    app.mount("/web", web_page.files)
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(HTTPException, _answer_http_exception)
    app.add_exception_handler(Exception, _answer_bug)
    app.add_middleware(Guard, settings=service.settings, keys=service.keys, metrics=service.metrics)
    return app


async def _answer_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _answer_http_exception(request: Request, error: Exception) -> Response:
    """What the framework refuses: unknown paths and wrong methods."""
    assert isinstance(error, HTTPException)
    method, path = request.method[:20], request.url.path[:80]
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


async def _answer_bug(request: Request, error: Exception) -> Response:
    """The traceback goes to the log, not to the client."""
    message = "the server failed to answer; its log says more"
    return ApiError(500, "internal_error", message).response()


def _allowed_methods(request: Request) -> set[str]:
    """What any route takes at this path."""
    methods: set[str] = set()
    for route in request.app.routes:
        match, _ = route.matches(request.scope)
        if match != Match.NONE:
            methods |= getattr(route, "methods", None) or {"GET", "HEAD"}
    return methods
