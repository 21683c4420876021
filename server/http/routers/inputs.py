"""`/v1/videos/{video_id}/inputs/{role}`: the pictures and clips that a video was made from."""

from fastapi import APIRouter
from starlette.responses import FileResponse

from server.errors import DO_NOT_RETRY, ApiError, shown
from server.http.answers import errors
from server.http.content import RangedFile
from server.http.dependencies import OwnedJob, ServiceDependency
from server.jobs.job import Job
from wan_tpu.media import CLIP_TYPES, PICTURE_TYPES, media_type_of

router = APIRouter(prefix="/v1/videos", tags=["videos"])

HEAD_BYTES = 64
"""Of a file, that say what it is."""

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
    },
)
async def download_input(role: str, job: OwnedJob, service: ServiceDependency) -> RangedFile:
    """Sends what a video is made from: `image`, `last_image`, `video`, or the one `extended`."""
    named = _named(job)
    if role not in named:
        known = ", ".join(named) or "nothing"
        message = f"{job.id} is made from {known}, and no {shown(role)}"
        raise ApiError(404, "not_found", message, param="role")
    path = service.uploads.path_of(named[role])
    try:
        status = path.stat()
        with path.open("rb") as file:
            kind = media_type_of(file.read(HEAD_BYTES))
    except OSError:
        message = f"the {role} of {job.id} is gone from the server's disk"
        raise ApiError(410, "files_lost", message, headers=DO_NOT_RETRY) from None
    return RangedFile(
        path,
        headers={"ETag": f'"{path.name}"', "Cache-Control": "private, no-cache"},
        media_type=kind or "application/octet-stream",
        filename=f"{job.id}-{role}",
        content_disposition_type="inline",
        stat_result=status,
    )


def _named(job: Job) -> dict[str, str]:
    """Digests by role."""
    extended = {} if job.extended is None else {"extended": job.extended.video}
    return job.request.media | extended
