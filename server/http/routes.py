"""The routes of the API. Each reads its request itself, so that every error has the one shape."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from server.engine.failure import Failure
from server.errors import DO_NOT_RETRY, ApiError, retry_after
from server.http import documentation as docs
from server.http.content import content_response
from server.http.events import Streams
from server.http.intake import digest, read_create
from server.http.schemas import ModelList, Readiness, Video, VideoDeleted, VideoList
from server.http.served_model import ServedModel
from server.jobs.job import Job
from server.service import Service

MAX_PAGE, DEFAULT_PAGE = 100, 20

EVENT_STREAM = "text/event-stream"

router = APIRouter()


@router.post("/v1/videos", **docs.CREATE, response_model=Video)
async def create_video(request: Request) -> Response:
    """Accepts a job and answers at once; it then waits its turn."""
    service = _service(request)
    create = await read_create(request)
    key = request.headers.get("idempotency-key")
    model: ServedModel = request.app.state.model
    job = await service.accept(
        _owner(request),
        model.request(create),
        model=model.id,
        request_digest=digest(create),
        idempotency_key=key,
    )
    return _video(service, job.id)


@router.get("/v1/videos", **docs.LIST, response_model=VideoList)
async def list_videos(request: Request) -> Response:
    """Lists jobs, newest first unless asked otherwise."""
    board = _service(request).board
    after, limit, newest_first = _page_parameters(request)
    ids, has_more = board.page(_owner(request), after=after, limit=limit, newest_first=newest_first)
    data = b",".join(map(board.body, ids))
    first, last = (_quoted(ids[0]), _quoted(ids[-1])) if ids else (b"null", b"null")
    tail = b'],"has_more":%s,"first_id":%s,"last_id":%s}'
    body = (
        b'{"object":"list","data":['
        + data
        + tail % (b"true" if has_more else b"false", first, last)
    )
    return Response(body, media_type="application/json")


@router.get("/v1/videos/{video_id}", **docs.RETRIEVE, response_model=Video)
async def retrieve_video(request: Request) -> Response:
    """Shows a job."""
    return _video(_service(request), _job(request).id)


@router.delete("/v1/videos/{video_id}", **docs.DELETE, response_model=VideoDeleted)
async def delete_video(request: Request) -> Response:
    """Forgets a job and removes its files; one that runs is stopped."""
    job = _job(request)
    await _service(request).delete([job.id])
    return JSONResponse({"id": job.id, "object": "video.deleted", "deleted": True})


@router.post("/v1/videos/{video_id}/cancel", **docs.CANCEL, response_model=Video)
async def cancel_video(request: Request) -> Response:
    """Stops a job; it is then failed, with the code `cancelled`."""
    service, job = _service(request), _job(request)
    after = await service.cancel(job.id)
    if after is None:
        raise _not_found(job.id)
    if after.error_code != Failure.CANCELLED:
        message = f"{job.id} is {after.state} already and cannot be cancelled; it can be deleted"
        raise ApiError(409, "not_cancellable", message, headers=DO_NOT_RETRY)
    return _video(service, job.id)


@router.get("/v1/videos/{video_id}/content", **docs.CONTENT)
async def download_content(request: Request) -> Response:
    """Sends a file of a completed job, whole or in ranges."""
    return await content_response(request, _service(request).media, _job(request))


@router.get("/v1/videos/{video_id}/events", **docs.EVENTS)
async def stream_events(request: Request) -> Response:
    """Sends the job's object whenever it changes, until it is finished."""
    service = _service(request)
    job = _job(request)
    streams: Streams = request.app.state.streams
    if request.method == "HEAD":
        return Response(media_type=EVENT_STREAM)
    if streams.open >= service.settings.max_event_streams:
        message = f"{streams.open} event streams are open, which is as many as may; poll instead"
        raise ApiError(429, "too_many_streams", message, headers=retry_after(5))
    return _event_stream(streams, job)


@router.get("/v1/models", **docs.MODELS, response_model=ModelList)
async def list_models(request: Request) -> Response:
    """Lists the models with their defaults and limits."""
    service = _service(request)
    model: ServedModel = request.app.state.model
    return JSONResponse({"object": "list", "data": [model.as_object(service.started_at)]})


@router.get("/livez", **docs.LIVE)
async def live(request: Request) -> Response:
    """Says that the server runs."""
    return JSONResponse({"status": "live"})


@router.get("/readyz", **docs.READY, response_model=Readiness)
async def ready(request: Request) -> Response:
    """Says whether jobs are worked on, and if not, what is missing."""
    service = _service(request)
    missing = service.missing
    if not missing:
        return JSONResponse({"status": "ready", "missing": []})
    error = ApiError(
        503, "not_ready", "; ".join(missing), headers=retry_after(service.retry_seconds)
    )
    body: dict[str, Any] = {"status": "not_ready", "missing": missing, **error.body}
    return JSONResponse(body, error.status, headers=error.headers)


@router.get("/metrics", **docs.METRICS)
async def metrics(request: Request) -> Response:
    """What Prometheus reads."""
    service = _service(request)
    service.metrics.queue_length.set(len(service.board.queue))
    service.metrics.ready.set(not service.missing)
    text = await asyncio.to_thread(generate_latest, service.metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def starlette_routes() -> list[Route]:
    """The routes as Starlette serves them; each GET takes HEAD, too."""
    return [
        Route(route.path, route.endpoint, methods=sorted(route.methods or ()))
        for route in router.routes
        if isinstance(route, APIRoute)
    ]


def _service(request: Request) -> Service:
    return request.app.state.service


def _owner(request: Request) -> str:
    return request.scope["state"]["owner"]


def _job(request: Request) -> Job:
    """The job of the path, if it is the caller's.

    Raises:
        ApiError: there is none.
    """
    job_id = request.path_params["video_id"]
    job = _service(request).board.find_owned(_owner(request), job_id)
    if job is None:
        raise _not_found(job_id)
    return job


def _not_found(job_id: str) -> ApiError:
    return ApiError(404, "not_found", f"there is no video {job_id[:80]!r}", param="video_id")


def _video(service: Service, job_id: str) -> Response:
    headers = {"openai-poll-after-ms": str(service.settings.poll_after_ms)}
    return Response(service.board.body(job_id), headers=headers, media_type="application/json")


def _event_stream(streams: Streams, job: Job) -> Response:
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    events = streams.events(job.id)
    return StreamingResponse(events, headers=headers, media_type=EVENT_STREAM)


def _page_parameters(request: Request) -> tuple[str | None, int, bool]:
    """(after, limit, whether newest first) of a list's query.

    Raises:
        ApiError: one of them is wrong.
    """
    query = request.query_params
    limit, order, after = query.get("limit", str(DEFAULT_PAGE)), query.get("order", "desc"), None
    if not (limit.isascii() and limit.isdigit() and len(limit) < 10 and 0 < int(limit) <= MAX_PAGE):
        message = f"limit must lie between 1 and {MAX_PAGE}, got {limit[:80]!r}"
        raise ApiError(400, "invalid_value", message, param="limit")
    if order not in ("asc", "desc"):
        message = f"order must be asc or desc, got {order[:80]!r}"
        raise ApiError(400, "invalid_value", message, param="order")
    if "after" in query:
        after = query["after"]
        if not docs.VIDEO_ID.fullmatch(after):
            message = f"after must be the id of a video, got {after[:80]!r}"
            raise ApiError(400, "invalid_value", message, param="after")
    return after, int(limit), order == "desc"


def _quoted(job_id: str) -> bytes:
    return b'"' + job_id.encode() + b'"'
