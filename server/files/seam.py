"""The files of jobs: what the routes ask, and nothing else.

`LocalFiles` has those of one slice in the data folder, `server.files.job_files` those of a fleet in
a bucket.
"""

import asyncio
import contextlib
import dataclasses
import os
import pathlib
from collections.abc import AsyncGenerator
from typing import Any, Protocol

from server.files.media import FilesLost, Media
from server.files.uploads import UploadLost, Uploads
from wan_tpu.media import digest_of

CHUNK_BYTES = 256 << 10
"""Of a file that is read piece by piece."""


class FileTooLarge(Exception):
    """A file is larger than its reader takes.

    Attributes:
        size: bytes that it has.
    """

    def __init__(self, size: int):
        super().__init__(f"{size} bytes")
        self.size = size


class Made(Protocol):
    """What of a job says where its files are; a `server.jobs.job.Job` has it."""

    @property
    def id(self) -> str:
        """`video_` and 32 hexadecimal digits."""
        ...

    @property
    def metadata(self) -> dict[str, Any] | None:
        """`files` in it are the size and digest of each file."""
        ...


class StoredFile(Protocol):
    """A file that was as long as it was written when it was opened."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    @property
    def digest(self) -> str | None:
        """SHA-256 in hexadecimal; None for videos of a release that kept none."""
        ...

    @property
    def modified(self) -> float:
        """Unix seconds at which it was written."""
        ...

    def stream(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` to before `end`, piece by piece.

        Raises:
            FilesLost: they are not all there any more.
            BucketError: they cannot be read now.
        """
        ...

    async def url(self, seconds: int) -> str | None:
        """Where anyone can read it for so long; None where there is no such place."""
        ...


class Files(Protocol):
    """The files of a service's jobs. Every coroutine may raise `BucketError`."""

    async def open(self, job: Made, variant: str) -> StoredFile:
        """A file of a completed job, checked.

        Args:
            job: that made it.
            variant: a key of `FILE_NAMES`.

        Raises:
            FilesLost: it is gone or not as long as it was written; says so for the client.
        """
        ...

    async def read(self, job: Made, variant: str, *, most: int) -> bytes:
        """All of a file of a completed job, held against its digest.

        Args:
            job: that made it.
            variant: a key of `FILE_NAMES`.
            most: bytes that are taken.

        Raises:
            FilesLost: it is gone or damaged; says so for the client.
            FileTooLarge: it has more bytes.
        """
        ...

    async def open_upload(self, job: Made, digest: str) -> StoredFile:
        """A picture or clip that a job is made from.

        Args:
            job: that is made from it.
            digest: `sha256:` and 64 hexadecimal digits, one of the job's.

        Raises:
            UploadLost: it is gone.
        """
        ...

    async def read_upload(self, job: Made, digest: str) -> bytes:
        """All of a picture or clip that a job is made from, held against its digest.

        Raises:
            UploadLost: it is gone or damaged.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LocalFile:
    """A `StoredFile` on this machine's disk."""

    path: pathlib.Path
    status: os.stat_result
    digest: str | None

    @property
    def size(self) -> int:
        """See `StoredFile`."""
        return self.status.st_size

    @property
    def modified(self) -> float:
        """See `StoredFile`."""
        return self.status.st_mtime

    async def stream(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """See `StoredFile`."""
        try:
            file = await asyncio.to_thread(self.path.open, "rb")
        except OSError:
            raise FilesLost(f"{self.path.name} is gone from the server's disk") from None
        with file:
            file.seek(start)
            while start < end:
                chunk = await asyncio.to_thread(file.read, min(CHUNK_BYTES, end - start))
                if not chunk:
                    raise FilesLost(f"{self.path.name} was cut short while it was read")
                start += len(chunk)
                yield chunk

    async def url(self, seconds: int) -> str | None:
        """None: only the server reads its disk."""
        return None


class LocalFiles:
    """`Files` of the data folder; a fleet's are `server.files.job_files.JobFiles`."""

    def __init__(self, media: Media, uploads: Uploads):
        self._media = media
        self._uploads = uploads

    async def open(self, job: Made, variant: str) -> LocalFile:
        """See `Files`."""
        noted = (job.metadata or {}).get("files")
        file = await asyncio.to_thread(self._media.open, job.id, variant, noted)
        return LocalFile(path=file.path, status=file.status, digest=file.digest)

    async def read(self, job: Made, variant: str, *, most: int) -> bytes:
        """See `Files`."""
        return await read_whole(await self.open(job, variant), job, variant, most=most)

    async def open_upload(self, job: Made, digest: str) -> LocalFile:
        """See `Files`."""
        path = self._uploads.path_of(digest)
        try:
            status = await asyncio.to_thread(path.stat)
        except OSError:
            raise UploadLost(f"a file that {job.id} is made from is gone") from None
        return LocalFile(path=path, status=status, digest=path.name)

    async def read_upload(self, job: Made, digest: str) -> bytes:
        """See `Files`."""
        return await read_whole_upload(await self.open_upload(job, digest), job, digest)


async def read_whole(file: StoredFile, job: Made, variant: str, *, most: int) -> bytes:
    """See `Files.read`, of a file that is open."""
    if file.size > most:
        raise FileTooLarge(file.size)
    data = await read_part(file, 0, file.size)
    if file.digest is not None and digest_of(data) != f"sha256:{file.digest}":
        raise FilesLost(f"the {variant} of {job.id} is damaged: it is not what was written")
    return data


async def read_whole_upload(file: StoredFile, job: Made, digest: str) -> bytes:
    """See `Files.read_upload`, of a file that is open."""
    try:
        data = await read_part(file, 0, file.size)
    except FilesLost:
        raise UploadLost(f"a file that {job.id} is made from is gone") from None
    if digest_of(data) != digest:
        raise UploadLost(f"a file that {job.id} is made from is damaged: it is not {digest}")
    return data


async def read_part(file: StoredFile, start: int, end: int) -> bytes:
    """The bytes from `start` to before `end`, together.

    Raises:
        FilesLost: they are not all there any more.
        BucketError: they cannot be read now.
    """
    async with contextlib.aclosing(file.stream(start, end)) as stream:
        return b"".join([chunk async for chunk in stream])
