"""`remix`, `edits`, `extensions`: videos that are made from videos."""

from collections.abc import Mapping

from fastapi import APIRouter, Depends, Request

from server.errors import ApiError
from server.http.answers import errors
from server.http.bodies import Making, VideoEdit, VideoExtend, VideoRemix, request_body
from server.http.extension import read_extension
from server.http.intake import Sent, SentEdit, SentExtend, SentRemix
from server.http.reference import Reference
from server.http.schemas import VideoCreated
from server.http.served_model import ServedModel
from server.http.source import Source, explained, inherit, read_source
from server.http.taking import Taking, TakingDependency, room_in_queue
from wan_tpu.request import VideoRequest

router = APIRouter(prefix="/v1/videos", tags=["videos"])
"""Stands before the routes of one video: no id is called `edits`."""

_ROOM = [Depends(room_in_queue)]
_OTHER_METHODS = ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]
_ERRORS = errors(403, 404, 408, 409, 410, 413, 415)


@router.post(
    "/edits",
    operation_id="editVideo",
    responses=_ERRORS,
    openapi_extra=request_body(VideoEdit),
    dependencies=_ROOM,
)
async def edit_video(taking: TakingDependency, sent: SentEdit) -> VideoCreated:
    """Makes a video anew by another prompt: of the one that is sent, or of a completed one.

    The model must take a video; `strength` says how much of it is replaced.
    """
    async with taking.sources:
        return await _make_anew(taking, sent, "edits", video_id=sent.video_id, field="video")


@router.post(
    "/{video_id}/remix",
    operation_id="remixVideo",
    responses=_ERRORS,
    openapi_extra=request_body(VideoRemix),
    dependencies=_ROOM,
)
async def remix_video(video_id: str, taking: TakingDependency, sent: SentRemix) -> VideoCreated:
    """Makes a completed video anew by another prompt, with its seed and its other settings.

    The model must take a video; `strength` says how much of it is replaced.
    """
    async with taking.sources:
        return await _make_anew(taking, sent, "remix", video_id=video_id, field="video_id")


@router.post(
    "/extensions",
    operation_id="extendVideo",
    responses=_ERRORS,
    openapi_extra=request_body(VideoExtend),
    dependencies=_ROOM,
)
async def extend_video(taking: TakingDependency, sent: SentExtend) -> VideoCreated:
    """Makes a longer video: the one that is sent, or a completed one, and what comes after it.

    The model must take an image: it continues from the last frame, for `seconds` more.
    """
    async with taking.sources:
        return await _extend(taking, sent)


@router.api_route("/edits", methods=_OTHER_METHODS, include_in_schema=False)
@router.api_route("/extensions", methods=_OTHER_METHODS, include_in_schema=False)
async def refuse_method(request: Request) -> None:
    """Neither is the id of a video, which these methods would look for."""
    method, path = request.method, request.scope["path"]
    message = f"{path!r} takes POST, not {method}"
    raise ApiError(405, "method_not_allowed", message, headers={"Allow": "POST"})


def _without_video(sent: Sent) -> list[Reference]:
    return [each for each in sent.references.values() if each.role != "video"]


async def _complete(
    taking: Taking,
    model: ServedModel,
    sent: Sent,
    body: Making,
    references: Mapping[str, Reference],
    source: Source | None,
) -> VideoRequest:
    """The complete request of a body; what it has from another video is said where it is refused.

    Raises:
        ApiError: it cannot be made.
    """
    try:
        return await taking.complete(model, body, references)
    except ApiError as error:
        if source is None:
            raise
        raise explained(error, sent.body, body, source.job) from None


async def _extend(taking: Taking, sent: Sent) -> VideoCreated:
    """The clip that was sent, or a completed video, and what comes after it."""
    before = await taking.repeated(sent, "extensions")
    if before is not None:
        return await taking.answer(before)
    model, service = await taking.choose(sent, sent.video_id), taking.service
    given = {"image": "video"} | {each.role: each.field for each in _without_video(sent)}
    model.check_inputs(given, "a video is continued from its last frame as an image, and ")
    source = None
    if sent.video_id is not None:
        source = await read_source(service, taking.owner, sent.video_id, field="video")
    clip = sent.references["video"] if source is None else source.reference
    body = sent.body
    if source is not None:
        body = inherit(body, source.job, model, length=False)
    extension = await taking.decoded(read_extension, model, body, clip)
    references = {each.field: each for each in _without_video(sent)} | {"video": extension.image}
    request = await _complete(taking, model, sent, extension.body, references, source)
    return await taking.accept(
        sent,
        model,
        request,
        extension.media(references),
        "extensions",
        source_id=sent.video_id,
        extended=extension.extended,
    )


async def _make_anew(
    taking: Taking, sent: Sent, route: str, *, video_id: str | None, field: str
) -> VideoCreated:
    """Video to video, of the clip that was sent or of a completed video."""
    context = (route, video_id or "")
    before = await taking.repeated(sent, *context)
    if before is not None:
        return await taking.answer(before)
    model = await taking.choose(sent, video_id)
    model.check_inputs({"video": field})
    body, references, source = sent.body, sent.references, None
    if video_id is not None:
        source = await read_source(taking.service, taking.owner, video_id, field=field)
        body = inherit(body, source.job, model, length=True)
        references = {field: source.reference}
    request = await _complete(taking, model, sent, body, references, source)
    (clip,) = references.values()
    return await taking.accept(sent, model, request, clip.media, *context, source_id=video_id)
