"""Serves the files of finished videos, in parts where a player asks for parts."""

import asyncio
from typing import Literal

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.types import Message, Receive, Scope, Send

from server.errors import DO_NOT_RETRY, ApiError
from server.files.media import FILE_NAMES, MEDIA_TYPES, FilesLost, Media
from server.jobs.job import Job, State

Variant = Literal["video", "thumbnail", "spritesheet"]
"""The files of a video; a test holds them to those that are written."""


async def content_response(request: Request, media: Media, job: Job, variant: Variant) -> Response:
    """A file of a job.

    Raises:
        ApiError: there is none, and why.
    """
    check_finished(job)
    files = (job.metadata or {}).get("files")
    try:
        file = await asyncio.to_thread(media.open, job.id, variant, files)
    except FilesLost as error:
        raise ApiError(410, "files_lost", str(error), headers=DO_NOT_RETRY) from None
    etag = f'"{file.digest or f"{job.id}-{variant}"}"'  # a finished video never changes
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if _matches(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    return RangedFile(
        file.path,
        headers=headers,
        media_type=MEDIA_TYPES[variant],
        filename=f"{job.id}-{FILE_NAMES[variant]}",
        content_disposition_type="inline",
        stat_result=file.status,
    )


def check_finished(job: Job) -> None:
    """Refuses a job that has no video.

    Raises:
        ApiError: it has not ended, or failed.
    """
    if job.state == State.FAILED:
        message = f"{job.id} has no video, because it failed: {job.error_message}"
        raise ApiError(409, "video_failed", message, headers=DO_NOT_RETRY)
    if job.state != State.COMPLETED:
        message = f"{job.id} is {job.state}; its video is there once it is completed"
        raise ApiError(409, "video_not_ready", message, headers=DO_NOT_RETRY)


def _matches(if_none_match: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


class RangedFile(FileResponse):
    """Starlette's file response, which refuses ranges in plain text, with our errors."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["state"].get("is_head"):
            scope = {**scope, "method": "HEAD"}  # so that it is not read from the disk for nothing
        headers = MutableHeaders(scope=scope)
        if headers.get("range", "").partition("=")[0].strip().lower() != "bytes":
            del headers["range"]  # units that a server does not know it ignores: RFC 9110, 14.2
        refusal: ApiError | None = None

        async def translate(message: Message) -> None:
            nonlocal refusal
            if message["type"] == "http.response.start" and message["status"] in (400, 416):
                refusal = self._refusal(message["status"])
            if refusal is None:
                await send(message)

        await super().__call__(scope, receive, translate)
        if refusal is not None:
            await refusal.response()(scope, receive, send)

    def _refusal(self, status: int) -> ApiError:
        assert self.stat_result is not None
        size = self.stat_result.st_size
        if status == 416:
            message = f"the range lies outside of the file's {size} bytes"
            headers = {"Content-Range": f"bytes */{size}"}
            return ApiError(416, "range_not_satisfiable", message, headers=headers)
        message = "the Range header is malformed; write for example bytes=0-1023"
        return ApiError(400, "invalid_range", message)
