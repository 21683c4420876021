"""Google Cloud Storage through Google's own package, whose calls run in threads.

Credentials are those that Google's tools find: GOOGLE_APPLICATION_CREDENTIALS, those of gcloud, the
machine's or the pod's service account. STORAGE_EMULATOR_HOST leads to a server for tests instead.
"""

import asyncio
import concurrent.futures
import contextlib
import datetime
import functools
import os
import pathlib
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, TypeVar

import google.auth
import requests
from google.api_core.exceptions import (
    Forbidden,
    GoogleAPICallError,
    NotFound,
    PreconditionFailed,
    RetryError,
    Unauthorized,
)
from google.auth.credentials import Signing
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY

from wan_tpu.storage.bucket import BucketError, ObjectMissing, Stat

Result = TypeVar("Result")
Blobs = list[storage.Blob]

RETRY = DEFAULT_RETRY.with_timeout(10.0).with_delay(initial=0.1, maximum=2.0)

TIMEOUT = (3.0, 30.0)
"""Seconds to connect, and until the next bytes come."""

CHUNK_BYTES = 1 << 20
"""Of an object that is read piece by piece, each by a request: a player may read slowly."""

PART_BYTES = 8 << 20
"""Of a large file that is written in parts; a multiple of 256 KiB."""

THREADS = 8
"""That wait for the store; its package keeps ten connections."""

_ERRORS = (
    GoogleAPICallError,
    GoogleAuthError,
    RetryError,
    InvalidResponse,
    DataCorruption,
    requests.exceptions.RequestException,
)


class GoogleBucket:
    """A bucket of Google's; see `Bucket`.

    Args:
        client: that reaches it.
        bucket: its name.
        prefix: of all keys; empty or with `/` at its end.
        signer: what signs URLs; None signs none.
        setting: what messages call its URL by.
    """

    def __init__(
        self,
        client: storage.Client,
        bucket: str,
        prefix: str,
        signer: Signing | None,
        setting: str,
    ):
        self.name = f"gs://{bucket}/{prefix}".rstrip("/")
        self._client = client
        self._bucket = client.bucket(bucket)
        self._prefix = prefix
        self._signer = signer
        self._setting = setting
        self._threads = concurrent.futures.ThreadPoolExecutor(THREADS, "bucket")

    async def put(
        self,
        key: str,
        data: bytes | pathlib.Path,
        *,
        create: bool = True,
        media_type: str | None = None,
    ) -> bool:
        """See `Bucket`."""
        blob = self._bucket.blob(self._prefix + key, chunk_size=PART_BYTES)
        options = {
            "content_type": media_type or "application/octet-stream",
            "if_generation_match": 0 if create else None,
        }
        try:
            if isinstance(data, bytes):
                await self._ask("write", blob.upload_from_string, data, **options)
            else:
                await self._ask("write", blob.upload_from_filename, str(data), **options)
        except PreconditionFailed:
            return False
        return True

    async def get(self, key: str) -> bytes:
        """See `Bucket`."""
        with _missing(key):
            return await self._ask("read", self._blob(key).download_as_bytes)

    async def stream(self, key: str, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """See `Bucket`."""
        blob = self._blob(key)
        while start < end:
            last = min(start + CHUNK_BYTES, end) - 1
            with _missing(key):
                chunk = await self._ask("read", blob.download_as_bytes, start=start, end=last)
            yield chunk
            start += len(chunk)
            if start <= last:
                return

    async def head(self, key: str) -> Stat | None:
        """See `Bucket`."""
        blob = self._blob(key)
        try:
            with _missing(key):
                await self._ask("read", blob.reload)
        except ObjectMissing:
            return None
        return self._stat(blob)

    async def list(self, prefix: str) -> list[Stat]:
        """See `Bucket`."""
        return [self._stat(blob) for blob in await self._blobs(prefix)]

    async def delete_all(self, prefix: str) -> int:
        """See `Bucket`."""
        assert prefix.endswith("/"), prefix
        blobs = await self._blobs(prefix)
        await self._ask("delete", self._bucket.delete_blobs, blobs, on_error=lambda blob: None)
        return len(blobs)

    async def delete(self, key: str) -> None:
        """See `Bucket`."""
        with contextlib.suppress(NotFound):
            await self._ask("delete", self._blob(key).delete)

    async def copy(self, key: str, to: str) -> None:
        """See `Bucket`."""
        with _missing(key):
            await self._ask(
                "copy", self._bucket.copy_blob, self._blob(key), self._bucket, self._prefix + to
            )

    async def url(self, key: str, seconds: int) -> str | None:
        """See `Bucket`."""
        if self._signer is None:
            return None
        return self._blob(key).generate_signed_url(
            version="v4",
            expiration=datetime.timedelta(seconds=seconds),
            credentials=self._signer,
        )

    def _blob(self, key: str) -> storage.Blob:
        return self._bucket.blob(self._prefix + key)

    async def _blobs(self, prefix: str) -> Blobs:
        def collect(**options: Any) -> Blobs:
            blobs = self._client.list_blobs(self._bucket, prefix=self._prefix + prefix, **options)
            return [*blobs]

        return await self._ask("list", collect)

    def _stat(self, blob: storage.Blob) -> Stat:
        assert blob.name is not None
        assert blob.size is not None
        assert blob.updated is not None
        return Stat(
            key=blob.name.removeprefix(self._prefix),
            size=blob.size,
            etag=blob.etag,
            modified=blob.updated.timestamp(),
        )

    async def _ask(
        self, doing: str, call: Callable[..., Result], *arguments: Any, **options: Any
    ) -> Result:
        """Calls what waits for the store.

        Raises:
            BucketError: it fails, and not for what is or is not there.
            NotFound: there is no such object.
            PreconditionFailed: there is one.
        """
        options |= {"retry": RETRY, "timeout": TIMEOUT}
        asked = functools.partial(call, *arguments, **options)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, asked)
        except PreconditionFailed:
            raise
        except _ERRORS as error:
            is_of_object = doing not in ("list", "write") and not _is_bucket(error)
            if isinstance(error, NotFound) and is_of_object:
                raise
            raise BucketError(f"{self.name}: {self._explanation(error, doing)}") from error

    def _explanation(self, error: Exception, doing: str) -> str:
        cause = error.cause if isinstance(error, RetryError) else error
        where = os.environ.get("STORAGE_EMULATOR_HOST") or "Google Cloud Storage"
        match cause:
            case NotFound():
                return f"there is no bucket {self._bucket.name} at {where}; check {self._setting}"
            case Unauthorized() | GoogleAuthError():
                return (
                    f"{where} does not take the credentials; check GOOGLE_APPLICATION_CREDENTIALS "
                    "or the service account"
                )
            case Forbidden():
                return (
                    f"{where} does not let these credentials {doing}; give their account "
                    "roles/storage.objectUser on the bucket"
                )
            case GoogleAPICallError(code=int(code)):
                return f"{where} failed to {doing} ({int(code)}); it may be back soon"
        return f"{where} cannot be reached; check the network, or wait until it is back"


def open_gs(bucket: str, prefix: str, *, setting: str) -> GoogleBucket:
    """A bucket of Google Cloud Storage.

    Args:
        bucket: its name.
        prefix: of all keys; empty or with `/` at its end.
        setting: what messages call it by.

    Raises:
        BucketError: there are no credentials.
    """
    credentials = None
    if not os.environ.get("STORAGE_EMULATOR_HOST"):
        try:
            credentials, _ = google.auth.default(scopes=storage.Client.SCOPE)
        except DefaultCredentialsError as error:
            raise BucketError(
                f"gs://{bucket}: there are no credentials; name a key file in "
                "GOOGLE_APPLICATION_CREDENTIALS, or give the machine a service account"
            ) from error
    client = storage.Client(project=None, credentials=credentials)
    signer = credentials if isinstance(credentials, Signing) else None
    return GoogleBucket(client, bucket, prefix, signer, setting)


@contextlib.contextmanager
def _missing(key: str) -> Generator[None]:
    try:
        yield
    except NotFound:
        raise ObjectMissing(key) from None


def _is_bucket(error: Exception) -> bool:
    """Whether it is the bucket that is not found, as Google's server words it."""
    return "bucket does not exist" in str(error)
