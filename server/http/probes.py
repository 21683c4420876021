"""What a slice of a fleet answers: whether it lives and takes jobs, and its meters; no jobs."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import ClassVar

from fastapi import FastAPI

from server.fleet.slice import Slice
from server.http.answers import add_exception_handlers
from server.http.guard import Guard
from server.http.limits import RequestRate
from server.http.observed import Observed
from server.http.routers import health
from server.http.served_model import serve_model
from server.metrics import Metrics
from server.settings import Settings
from wan_tpu import __version__


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SliceService:
    """A slice, as whoever serves sees it; see `server.service.Service`."""

    settings: Settings
    metrics: Metrics
    jobs: Slice

    keys: ClassVar[None] = None

    @property
    def missing(self) -> list[str]:
        """What stands between the slice and its taking jobs, as sentences."""
        return self.jobs.missing

    @property
    def retry_seconds(self) -> float:
        """When to come again to a slice that is not ready."""
        return self.jobs.retry_seconds


def open_slice(settings: Settings) -> SliceService:
    """Opens what a slice needs.

    Raises:
        WanTpuError: the model, the data folder or the bucket cannot be used.
    """
    metrics = Metrics()
    model = serve_model(settings)
    slice_ = Slice(
        settings,
        metrics,
        model=model.id,
        description=model.description,
        warm_sizes=model.warm_sizes,
    )
    return SliceService(settings=settings, metrics=metrics, jobs=slice_)


def make_probes(service: SliceService) -> FastAPI:
    """The application of a slice."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.jobs.running():
            yield

    app = FastAPI(
        title="wan-tpu slice",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    strangers = RequestRate(service.settings.max_anonymous_requests_per_second)
    app.state.service = service
    app.state.stranger_rate = strangers
    app.state.streams = None
    app.include_router(health.router)
    app.add_middleware(
        Guard, settings=service.settings, strangers=strangers, takes_files=lambda: False
    )
    app.add_middleware(Observed, metrics=service.metrics)
    add_exception_handlers(app)
    return app
