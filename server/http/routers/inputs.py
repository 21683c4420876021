"""`/v1/videos/{video_id}/inputs/{role}`: the pictures and clips that a video was made from."""

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, Response

from server.errors import ApiError, shown
from server.http.answers import errors
from server.http.content import input_file, input_response
from server.http.dependencies import OwnedJob, ServiceDependency
from server.jobs.job import Job
from wan_tpu.media import CLIP_TYPES, PICTURE_TYPES

router = APIRouter(prefix="/v1/videos", tags=["videos"])

FILES = (*PICTURE_TYPES, *CLIP_TYPES)
BINARY = {"schema": {"type": "string", "format": "binary"}}


@router.get(
    "/{video_id}/inputs/{role}",
    operation_id="downloadVideoInput",
    response_class=FileResponse,
    responses={
        **errors(404, 410, 416),
        200: {"description": "The file, as it was sent", "content": dict.fromkeys(FILES, BINARY)},
        206: {"description": "The ranges that were asked for"},
        302: {"description": "The file lies in a store, for minutes at the URL of `Location`"},
    },
)
async def download_input(
    role: str, job: OwnedJob, service: ServiceDependency, request: Request
) -> Response:
    """Sends what a video is made from: `image`, `last_image`, `video`, or the one `extended`."""
    named = _named(job)
    if role not in named:
        known = ", ".join(named) or "nothing"
        message = f"{job.id} is made from {known}, and no {shown(role)}"
        raise ApiError(404, "not_found", message, param="role")
    stored = await input_file(service.files, job, role, named[role])
    return await input_response(request, stored, job, role, service.settings.files_redirect)


def _named(job: Job) -> dict[str, str]:
    """Digests by role."""
    extended = {} if job.extended is None else {"extended": job.extended.video}
    return job.request.media | extended
