"""`/v1/videos`: create, list, show, cancel, delete, download, follow."""

import logging
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.responses import FileResponse, Response

from server.answered import answered
from server.engine.failure import Failure
from server.errors import DO_NOT_RETRY, ApiError
from server.http.answers import Answered, errors
from server.http.bodies import VideoCreate, request_body
from server.http.content import Variant, finished_file, stored_response
from server.http.dependencies import (
    OwnedJob,
    Owner,
    ServiceDependency,
    video_not_found,
)
from server.http.events import Streams
from server.http.intake import SentVideo
from server.http.schemas import (
    VIDEO_ID,
    PageLimit,
    Video,
    VideoCreated,
    VideoDeleted,
    VideoList,
)
from server.http.taking import TakingDependency, ready_json, room_in_queue, video_answer
from server.http.tickets import Tickets
from wan_tpu.media import Media

logger = logging.getLogger(__name__)

FILES = ("video/mp4", "image/webp", "image/jpeg")
BINARY = {"schema": {"type": "string", "format": "binary"}}

router = APIRouter(prefix="/v1/videos", tags=["videos"])


@router.get("/{video_id}", operation_id="retrieveVideo", responses=errors(404))
async def retrieve_video(job: OwnedJob, service: ServiceDependency) -> Video:
    """Shows a job."""
    return video_answer(service, job)


@router.post(
    "",
    operation_id="createVideo",
    responses=errors(403, 404, 408, 409, 413, 415),
    openapi_extra=request_body(VideoCreate),
    dependencies=[Depends(room_in_queue)],
)
async def create_video(taking: TakingDependency, sent: SentVideo) -> VideoCreated:
    """Accepts a job and answers at once; it then waits its turn."""
    before = await taking.repeated(sent)
    if before is not None:
        return await taking.answer(before)
    model = await taking.choose(sent)
    request = await taking.complete(model, sent.body, sent.references)
    media = Media({each.digest: each.data for each in sent.references.values()})
    return await taking.accept(sent, model, request, media)


@router.get("", operation_id="listVideos")
async def list_videos(
    service: ServiceDependency,
    owner: Owner,
    after: Annotated[
        str | None,
        Query(pattern=f"^{VIDEO_ID}$", description="the last id of the page before"),
    ] = None,
    limit: Annotated[PageLimit, Query(description="how many")] = 20,
    order: Annotated[Literal["asc", "desc"], Query(description="by time of creation")] = "desc",
) -> VideoList:
    """Lists jobs, newest first unless asked otherwise."""
    newest_first = order == "desc"
    with answered():
        jobs, has_more = await service.jobs.page(
            owner, after=after, limit=limit, newest_first=newest_first
        )
    first, last = (_quoted(jobs[0].id), _quoted(jobs[-1].id)) if jobs else (b"null", b"null")
    body = b'{"object":"list","data":[%s],"has_more":%s,"first_id":%s,"last_id":%s}' % (
        b",".join(service.jobs.bodies(jobs)),
        b"true" if has_more else b"false",
        first,
        last,
    )
    return ready_json(body)


@router.delete("/{video_id}", operation_id="deleteVideo", responses=errors(403, 404))
async def delete_video(job: OwnedJob, service: ServiceDependency) -> VideoDeleted:
    """Forgets a job and removes its files; one that runs is stopped."""
    await service.delete([job.id])
    logger.info("job deleted", extra={"job": job.id, "owner": job.owner})
    return VideoDeleted(id=job.id, object="video.deleted", deleted=True)


@router.post("/{video_id}/cancel", operation_id="cancelVideo", responses=errors(403, 404, 409))
async def cancel_video(job: OwnedJob, service: ServiceDependency) -> Video:
    """Stops a job; it is then failed, with the code `cancelled`."""
    after = await service.cancel(job.id)
    if after is None:
        raise video_not_found(job.id)
    if after.error_code != Failure.CANCELLED:
        message = f"{job.id} is {after.state} already and cannot be cancelled; it can be deleted"
        raise ApiError(409, "not_cancellable", message, headers=DO_NOT_RETRY)
    logger.info("job cancelled", extra={"job": job.id, "owner": job.owner})
    return video_answer(service, after)


@router.get(
    "/{video_id}/content",
    operation_id="downloadVideoContent",
    response_class=FileResponse,
    responses={
        **errors(404, 409, 410, 416),
        200: {"description": "The file", "content": dict.fromkeys(FILES, BINARY)},
        206: {
            "description": "The ranges that were asked for",
            "content": dict.fromkeys((*FILES, "multipart/byteranges"), BINARY),
        },
        302: {"description": "The file lies in a store, for minutes at the URL of `Location`"},
        304: {"description": "The file is the one of `If-None-Match`"},
    },
)
async def download_content(
    job: OwnedJob,
    service: ServiceDependency,
    request: Request,
    variant: Annotated[Variant, Query(description="which file")] = "video",
) -> Response:
    """Sends a file of a completed job, whole or in ranges."""
    stored = await finished_file(service.files, job, variant)
    redirect = service.settings.files_redirect
    return await stored_response(request, stored, job, variant, redirect)


@router.post(
    "/{video_id}/ticket",
    operation_id="giveTicket",
    status_code=204,
    response_class=Response,
    responses={
        **errors(403, 404),
        204: {"description": "The cookie is set; where no keys are asked for, none is needed"},
    },
)
async def give_ticket(job: OwnedJob, request: Request) -> Response:
    """Lets this browser's player read the files of one video for a while, by a cookie."""
    tickets: Tickets = request.app.state.tickets
    key: str | None = getattr(request.state, "key", None)
    return Response(status_code=204) if key is None else tickets.give(request, job.id, key)


async def stream_place(
    request: Request,
    job: OwnedJob,
    last_event_id: Annotated[
        str | None,
        Header(
            alias="Last-Event-ID",
            description="as browsers send it when they connect again: 204 if the end was seen",
        ),
    ] = None,
) -> AsyncIterator[Streams]:
    """A place among the streams, until this one ends; who has seen the end gets none."""
    if last_event_id == str(job.state) and job.is_finished:
        raise Answered(Response(status_code=204))
    if request.scope["state"].get("is_head"):
        raise Answered(Response(media_type=EventSourceResponse.media_type))
    streams: Streams = request.app.state.streams
    with streams.place(job.owner):
        yield streams


@router.get(
    "/{video_id}/events",
    operation_id="streamVideoEvents",
    response_class=EventSourceResponse,
    responses={
        **errors(404),
        200: {
            "description": "`event: video` with the whole object at every change; ends with the "
            "job, or with `event: deleted` and its id"
        },
        204: {"description": "The job is finished, and `Last-Event-ID` says that this was seen"},
    },
)
async def stream_events(
    request: Request,
    job: OwnedJob,
    streams: Annotated[Streams, Depends(stream_place)],
) -> AsyncIterator[ServerSentEvent]:
    """Sends the job's object whenever it changes, until it is finished."""
    async for event in streams.events(job.id, request.scope["state"].get("key")):
        yield event


def _quoted(job_id: str) -> bytes:
    return b'"' + job_id.encode() + b'"'
