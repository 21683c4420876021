"""The application: routers, the page, what stands in front of them, what starts and ends with it.

A new route goes into `server.http.routers`; what it asks for by type is in
`server.http.dependencies`, bodies and answers are in `server.http.schemas`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from fastapi import Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware

from server.http import swagger
from server.http.answers import add_exception_handlers, errors
from server.http.dependencies import limit_rate, require_key
from server.http.events import Streams
from server.http.guard import Guard
from server.http.limits import RequestRate
from server.http.observed import Observed
from server.http.routers import (
    health,
    inputs,
    models,
    profiles,
    slices,
    unsupported,
    variations,
    videos,
)
from server.http.served_model import serve_model
from server.http.served_models import fleet_models, one_model
from server.http.taking import DECODED_AT_ONCE, SOURCES_AT_ONCE
from server.http.tickets import Tickets
from server.service import Service
from server.web import page
from wan_tpu import __version__

DESCRIPTION = """Text, pictures and clips to video with the Wan diffusion models. The video API of
OpenAI's clients, and beyond it more fields of a request, `cancel`, `events`, `inputs` and `ticket`.
Every error has one shape."""

EXPOSED_HEADERS = ("X-Request-Id", "Retry-After", "openai-poll-after-ms", "Content-Disposition")


def make_app(service: Service) -> FastAPI:
    """The application of a service.

    Raises:
        WanTpuError: the model that the settings name does not exist.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(service.running())
            for model in served.all():
                await stack.enter_async_context(model.adapters.watched())
            yield

    settings = service.settings
    if service.slices is None:
        served = one_model(settings, serve_model(settings))
    else:
        served = fleet_models(settings, service.slices)
    app = FastAPI(
        title="wan-tpu",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,
        # Those of FastAPI load scripts from another site: see `swagger`.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.state.models = served
    app.state.decoding = asyncio.Semaphore(DECODED_AT_ONCE)
    app.state.sources = asyncio.Semaphore(SOURCES_AT_ONCE)
    app.state.streams = Streams(
        service.jobs,
        service.keys,
        most=settings.max_event_streams,
        most_per_key=settings.max_event_streams_per_key,
    )
    app.state.tickets = Tickets()
    app.state.key_rate = RequestRate(settings.max_requests_per_second)
    app.state.stranger_rate = RequestRate(settings.max_anonymous_requests_per_second)
    _add_routes(app, with_keys=service.keys is not None)
    _add_middleware(app, service)
    add_exception_handlers(app)
    return app


def _add_routes(app: FastAPI, *, with_keys: bool) -> None:
    in_front = [Depends(limit_rate)]
    if with_keys:
        in_front.insert(0, Depends(require_key))
    routers = [variations.router, videos.router, inputs.router, models.router]
    if app.state.service.profiles is not None:
        routers.append(profiles.router)
    if app.state.service.slices is not None:
        routers.append(slices.router)
    for router in (*routers, unsupported.router):
        app.include_router(router, dependencies=in_front, responses=errors(400, 401, 429, 503))
    app.include_router(health.router, responses=errors(400, 429))
    for router in (page.router, swagger.make_router(app)):
        app.include_router(router, include_in_schema=False)
    app.mount("/web", page.files)


def _add_middleware(app: FastAPI, service: Service) -> None:
    """What stands in front of the routes; what is added last sees a request first."""
    settings = service.settings
    app.add_middleware(
        Guard,
        settings=settings,
        strangers=app.state.stranger_rate,
        takes_files=lambda: app.state.models.take_files,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[origin.lower() for origin in settings.cors_origins],
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(Observed, metrics=service.metrics)
