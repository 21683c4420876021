"""Serves the files of jobs, in parts where a player asks for parts."""

import contextlib
import os
import stat
from collections.abc import AsyncGenerator
from typing import Any, Literal

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from server.answered import answered
from server.errors import DO_NOT_RETRY, ApiError
from server.files.media import FILE_NAMES, MEDIA_TYPES, FilesLost
from server.files.seam import Files, LocalFile, StoredFile, read_part
from server.files.uploads import UploadLost
from server.jobs.job import Job, State
from wan_tpu.media import media_type_of

Variant = Literal["video", "thumbnail", "spritesheet"]
"""The files of a video; a test holds them to those that are written."""

REDIRECT_SECONDS = 600
"""That a URL holds to which a client is sent: a player comes back to it for each part."""

HEAD_BYTES = 64
"""Of a file, that say what it is."""


async def finished_file(files: Files, job: Job, variant: Variant) -> StoredFile:
    """A file of a job.

    Raises:
        ApiError: there is none, and why; or it cannot be reached now.
    """
    check_finished(job)
    try:
        with answered():
            return await files.open(job, variant)
    except FilesLost as error:
        raise ApiError(410, "files_lost", str(error), headers=DO_NOT_RETRY) from None


async def stored_response(
    request: Request, stored: StoredFile, job: Job, variant: Variant, redirect: bool
) -> Response:
    """A file of a finished job, whole or the range that is asked for.

    Args:
        request: with the headers that say what the client has and wants.
        stored: the file.
        job: that made it.
        variant: which file.
        redirect: whether the client is sent to where the file lies, if it can read it there.

    Raises:
        ApiError: it cannot be reached now.
    """
    etag = f'"{stored.digest or f"{job.id}-{variant}"}"'  # a finished video never changes
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if _matches(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    name = f"{job.id}-{FILE_NAMES[variant]}"
    return await _sent(request, stored, headers, name, MEDIA_TYPES[variant], redirect)


async def input_file(files: Files, job: Job, role: str, digest: str) -> StoredFile:
    """A picture or clip that a job is made from.

    Raises:
        ApiError: it is gone, or cannot be reached now.
    """
    try:
        with answered():
            return await files.open_upload(job, digest)
    except UploadLost:
        raise _input_lost(job, role) from None


async def input_response(
    request: Request, stored: StoredFile, job: Job, role: str, redirect: bool
) -> Response:
    """A picture or clip that a job is made from, whole or the range that is asked for.

    Args:
        request: with the headers that say what the client wants.
        stored: the file.
        job: that is made from it.
        role: what it is for.
        redirect: whether the client is sent to where the file lies, if it can read it there.

    Raises:
        ApiError: it is gone, or cannot be reached now.
    """
    try:
        with answered():
            begin = await read_part(stored, 0, min(HEAD_BYTES, stored.size))
    except FilesLost:
        raise _input_lost(job, role) from None
    headers = {"ETag": f'"{stored.digest}"', "Cache-Control": "private, no-cache"}
    kind = media_type_of(begin) or "application/octet-stream"
    return await _sent(request, stored, headers, f"{job.id}-{role}", kind, redirect)


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


def _input_lost(job: Job, role: str) -> ApiError:
    message = f"the {role} of {job.id} is gone from the server's disk"
    return ApiError(410, "files_lost", message, headers=DO_NOT_RETRY)


def _matches(if_none_match: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag in tags


async def _sent(
    request: Request,
    stored: StoredFile,
    headers: dict[str, str],
    name: str,
    media_type: str,
    redirect: bool,
) -> Response:
    # The signature of a URL holds for GET alone, and our page loads from its own origin alone.
    is_of_page = request.headers.get("sec-fetch-site") == "same-origin"
    if redirect and not is_of_page and not request.scope["state"].get("is_head"):
        with answered():
            url = await stored.url(REDIRECT_SECONDS)
        if url is not None:
            return RedirectResponse(url, status_code=302, headers={"Cache-Control": "no-store"})
    options: dict[str, Any] = {
        "headers": headers,
        "media_type": media_type,
        "filename": name,
        "content_disposition_type": "inline",
    }
    if isinstance(stored, LocalFile):
        return RangedFile(stored.path, stat_result=stored.status, **options)
    return RangedObject(stored, **options)


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


class RangedObject(RangedFile):
    """The same of a file that is not on this machine: what its answer to HEAD says, and the bytes.

    Several ranges at once are answered with the whole file, as RFC 9110, 14.2 allows.
    """

    def __init__(self, stored: StoredFile, **options: Any):
        modified = round(stored.modified)
        status = (stat.S_IFREG, 0, 0, 1, 0, 0, stored.size, modified, modified, modified)
        super().__init__("", stat_result=os.stat_result(status), **options)
        self._stored = stored

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        headers = MutableHeaders(scope=scope)
        if "," in headers.get("range", ""):
            del headers["range"]
        answer: list[Message] = []

        async def keep(message: Message) -> None:
            answer.append(message)

        await super().__call__({**scope, "method": "HEAD"}, receive, keep)
        if scope["state"].get("is_head") or answer[0]["status"] not in (200, 206):
            for message in answer:
                await send(message)
            return
        try:
            await self._send_bytes(answer[0], scope, receive, send)
        except ApiError as error:
            await error.response()(scope, receive, send)

    async def _send_bytes(self, begin: Message, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends an answer of which all but the bytes is known.

        Raises:
            ApiError: nothing can be read; nothing is sent then.
        """
        start, end = 0, self._stored.size
        part = Headers(raw=begin["headers"]).get("content-range")
        if part is not None:
            first, last = part.removeprefix("bytes ").partition("/")[0].split("-")
            start, end = int(first), int(last) + 1
        async with contextlib.aclosing(self._stored.stream(start, end)) as stream:
            try:
                with answered():
                    chunk = await anext(stream)
            except FilesLost as error:
                raise ApiError(410, "files_lost", str(error), headers=DO_NOT_RETRY) from None
            response = StreamingResponse(_chained(chunk, stream), status_code=begin["status"])
            response.raw_headers = begin["headers"]
            await response(scope, receive, send)


async def _chained(
    chunk: bytes, stream: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    yield chunk
    async for following in stream:
        yield following
