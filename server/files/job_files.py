"""The files of a fleet's jobs, in a bucket. One prefix a job: removing it removes all of the job's.

    videos/<job id>/uploads/<sha256>        pictures and clips, before the job is accepted
    videos/<job id>/<start>/video.mp4       and its thumbnail and spritesheet, by the slice

A start is one take-up of a job by a slice. Its files are written under its number, and only where
nothing is: whoever comes late with an older start spoils nothing. Which start counts the row says.
"""

import asyncio
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import AsyncGenerator, Iterable, Sequence
from typing import Any

from server.files.media import FILE_NAMES, JOB_FOLDER, MEDIA_TYPES, FilesLost, measure_files
from server.files.seam import Made, read_whole, read_whole_upload
from server.files.uploads import UploadLost, name_of
from wan_tpu.media import Media, digest_of, media_type_of
from wan_tpu.storage.bucket import Bucket, BucketError, ObjectMissing

VIDEOS = "videos/"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BucketFile:
    """A `StoredFile` that is an object of a bucket."""

    bucket: Bucket
    key: str
    size: int
    digest: str | None
    modified: float

    async def stream(self, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """See `StoredFile`."""
        try:
            async for chunk in self.bucket.stream(self.key, start, end):
                start += len(chunk)
                yield chunk
        except ObjectMissing:
            raise FilesLost(f"{self.key} is gone from the store of files") from None
        if start < end:
            raise FilesLost(f"{self.key} was cut short while it was read")

    async def url(self, seconds: int) -> str | None:
        """See `StoredFile`."""
        return await self.bucket.url(self.key, seconds)


@dataclasses.dataclass(slots=True)
class JobFound:
    """What a job has in the bucket.

    Attributes:
        modified: when its newest file was written: unix seconds of the store.
        starts: that have files.
    """

    modified: float = 0.0
    starts: set[int] = dataclasses.field(default_factory=set)


class JobFiles:
    """The files of jobs in a bucket, for those that take jobs and those that make them; `Files`.

    Every method may raise `BucketError`; it can be called again then.
    """

    def __init__(self, bucket: Bucket):
        self._bucket = bucket

    async def put_uploads(self, job_ids: Sequence[str], media: Media) -> None:
        """Writes pictures and clips for each of some jobs that are not accepted yet."""
        for digest, data in media.items():
            first, *others = [upload_key(job_id, digest) for job_id in job_ids]
            await self._bucket.put(first, data, media_type=media_type_of(data))
            for key in others:
                await self._bucket.copy(first, key)

    async def fetch_uploads(
        self, job_id: str, digests: Iterable[str], folder: pathlib.Path
    ) -> None:
        """Brings pictures and clips of a job into a folder, as `read_uploads` reads it.

        Args:
            job_id: whose they are.
            digests: `sha256:` and 64 hexadecimal digits each.
            folder: that is there.

        Raises:
            UploadLost: one is gone or damaged; says so for the client.
            OSError: the folder cannot be written.
        """
        for digest in set(digests):
            try:
                data = await self._bucket.get(upload_key(job_id, digest))
            except ObjectMissing:
                raise UploadLost(f"a file that {job_id} is made from is gone") from None
            if digest_of(data) != digest:
                raise UploadLost(f"a file that {job_id} is made from is damaged: not {digest}")
            await asyncio.to_thread(_write_private, folder / name_of(digest), data)

    async def publish(
        self, job_id: str, start: int, folder: pathlib.Path
    ) -> dict[str, dict[str, Any]]:
        """Writes the files of a video under its start's number, where none are.

        After an error it can be called again: what it has written already is known by its content.

        Args:
            job_id: of the job.
            start: which start of the job made them, from 1.
            folder: that holds all of `FILE_NAMES`.

        Returns:
            Size and digest of each file, for the job's `metadata["files"]`; see `measure_files`.

        Raises:
            BucketError: also where other files of this start are there.
            OSError: a file cannot be read.
        """
        measured = await asyncio.to_thread(measure_files, folder)
        for variant, name in FILE_NAMES.items():
            key = file_key(job_id, start, variant)
            kind = MEDIA_TYPES[variant]
            if await self._bucket.put(key, folder / name, media_type=kind):
                continue
            # An answer that was lost makes the store's own repetition find what it wrote itself.
            if await self._digest_of(key) != measured[variant]["sha256"]:
                raise BucketError(f"{self._bucket.name}: another {key} is there already")
        return measured

    async def open(self, job: Made, variant: str) -> BucketFile:
        """See `Files`."""
        metadata = job.metadata or {}
        start, noted = metadata.get("start"), (metadata.get("files") or {}).get(variant)
        stat = None
        if isinstance(start, int) and isinstance(noted, dict):
            stat = await self._bucket.head(file_key(job.id, start, variant))
        if stat is None or noted is None:
            raise FilesLost(f"the {variant} of {job.id} is gone from the store of files")
        if stat.size != noted["bytes"] or not stat.size:
            raise FilesLost(
                f"the {variant} of {job.id} is damaged: {stat.size} bytes are there, "
                f"{noted['bytes']} were written"
            )
        return self._opened(stat.key, stat.size, noted["sha256"], stat.modified)

    async def read(self, job: Made, variant: str, *, most: int) -> bytes:
        """See `Files`."""
        return await read_whole(await self.open(job, variant), job, variant, most=most)

    async def open_upload(self, job: Made, digest: str) -> BucketFile:
        """See `Files`."""
        stat = await self._bucket.head(upload_key(job.id, digest))
        if stat is None:
            raise UploadLost(f"a file that {job.id} is made from is gone")
        return self._opened(stat.key, stat.size, name_of(digest), stat.modified)

    async def read_upload(self, job: Made, digest: str) -> bytes:
        """See `Files`."""
        return await read_whole_upload(await self.open_upload(job, digest), job, digest)

    async def remove(self, job_id: str) -> int:
        """Removes all files of a job; returns how many there were."""
        return await self._bucket.delete_all(_prefix(job_id))

    async def remove_start(self, job_id: str, start: int) -> None:
        """Removes the files of a start whose outcome nobody wants."""
        await self._bucket.delete_all(f"{_prefix(job_id)}{start}/")

    async def jobs_there(self) -> dict[str, JobFound]:
        """The jobs that have files; what is not named as a job is left out: it is not ours."""
        found: dict[str, JobFound] = {}
        for stat in await self._bucket.list(VIDEOS):
            job_id, _, rest = stat.key.removeprefix(VIDEOS).partition("/")
            if JOB_FOLDER.fullmatch(job_id):
                job = found.setdefault(job_id, JobFound())
                job.modified = max(job.modified, stat.modified)
                start = rest.partition("/")[0]
                if start.isdecimal():
                    job.starts.add(int(start))
        return found

    def _opened(self, key: str, size: int, digest: str, modified: float) -> BucketFile:
        return BucketFile(bucket=self._bucket, key=key, size=size, digest=digest, modified=modified)

    async def _digest_of(self, key: str) -> str:
        """SHA-256 of an object, in hexadecimal."""
        found = hashlib.sha256()
        stat = await self._bucket.head(key)
        if stat is not None:
            async for chunk in self._bucket.stream(key, 0, stat.size):
                found.update(chunk)
        return found.hexdigest()


def file_key(job_id: str, start: int, variant: str) -> str:
    """The key of a file of a video."""
    assert start > 0, start
    return f"{_prefix(job_id)}{start}/{FILE_NAMES[variant]}"


def upload_key(job_id: str, digest: str) -> str:
    """The key of a picture or clip that a job is made from."""
    return f"{_prefix(job_id)}uploads/{name_of(digest)}"


def _prefix(job_id: str) -> str:
    assert JOB_FOLDER.fullmatch(job_id), f"{job_id!r} is no job's id"
    return f"{VIDEOS}{job_id}/"


def _write_private(path: pathlib.Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
