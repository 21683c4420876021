"""`/livez`, `/readyz`, `/metrics`: for supervisors and for Prometheus; no key is asked for."""

import asyncio
import math
import time
from typing import Annotated, Protocol

from fastapi import APIRouter, Depends, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from server.errors import ApiError, retry_after
from server.http.dependencies import IsKnown
from server.http.schemas import Live, NotReady, Readiness
from server.jobs.seam import Queue
from server.metrics import Metrics

router = APIRouter(tags=["health"])


class Line(Protocol):
    """Jobs, of which some wait."""

    async def queue(self) -> Queue:
        """What waits."""
        ...


class Probed(Protocol):
    """What is asked of a `server.service.Service`, or of a slice of a fleet."""

    @property
    def missing(self) -> list[str]:
        """What stands between it and being ready, as sentences; empty when it is."""
        ...

    @property
    def retry_seconds(self) -> float:
        """When to come again if it is not."""
        ...

    @property
    def metrics(self) -> Metrics:
        """Its meters."""
        ...

    @property
    def jobs(self) -> Line:
        """Those that it takes, or makes."""
        ...


async def get_probed(request: Request) -> Probed:
    """What this application serves."""
    return request.app.state.service


ProbedDependency = Annotated[Probed, Depends(get_probed)]


@router.get("/livez", operation_id="live")
async def live() -> Live:
    """Says that the server runs."""
    return Live(status="live")


@router.get(
    "/readyz",
    operation_id="ready",
    response_model=Readiness,
    responses={503: {"model": NotReady, "description": "Not yet, or no more; says why"}},
)
@router.get("/health", include_in_schema=False)
async def ready(service: ProbedDependency, is_known: IsKnown) -> Response:
    """Says whether jobs are worked on, and if not, what is missing and when to ask again.

    Who has no key is told no more than the kind of it.
    """
    missing = [why if is_known else _kind(why) for why in service.missing]
    if not missing:
        return Response(READY, media_type="application/json")
    seconds = service.retry_seconds
    error = ApiError(503, "not_ready", "; ".join(missing), headers=retry_after(seconds))
    body = NotReady(
        status="not_ready", missing=missing, retry_seconds=math.ceil(seconds), **error.body
    )
    return JSONResponse(body.model_dump(), error.status, headers=error.headers)


def _kind(why: str) -> str:
    """What of a reason anybody may know: the rest may name machines and files."""
    return why.partition(":")[0]


READY = Readiness(status="ready", missing=[]).model_dump_json().encode()


@router.get(
    "/metrics",
    operation_id="metrics",
    responses={
        200: {"description": "Text", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
    response_class=Response,
)
async def metrics(service: ProbedDependency) -> Response:
    """What Prometheus reads."""
    meters, queue = service.metrics, await service.jobs.queue()
    meters.queue_length.set(queue.length)
    waited = 0.0 if queue.oldest_at is None else time.time() - queue.oldest_at
    meters.oldest_waiting_seconds.set(max(0.0, waited))
    meters.ready.set(not service.missing)
    meters.missing.clear()
    for why in service.missing:
        meters.missing.labels(_kind(why)).set(1)
    text = await asyncio.to_thread(generate_latest, meters.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
