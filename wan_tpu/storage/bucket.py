"""A bucket: what is asked of a store of objects, whoever has it. Imports no store's package.

Objects are written whole or not at all. Keys are relative to the prefix of the URL, with `/`
between their parts.
"""

import dataclasses
import pathlib
import secrets
from collections.abc import AsyncGenerator
from typing import Protocol
from urllib.parse import unquote, urlsplit

from wan_tpu.errors import InputError, MissingPackageError, WanTpuError

SETTING = "WAN_TPU_FILES"
"""What a server's user knows the URL of its files by."""

SCHEMES = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or a folder"


class BucketError(WanTpuError):
    """The bucket cannot be used, now or as it is set up; says which, and what to do."""


class BucketUrlError(BucketError, InputError):
    """What names the bucket is not written as it should be."""


class ObjectMissing(Exception):
    """There is no object of this key."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """An object, without what is in it.

    Attributes:
        key: relative to the bucket's prefix.
        size: bytes.
        etag: changes with the content; a folder's may be None.
        modified: unix seconds, by the store's clock.
    """

    key: str
    size: int
    etag: str | None
    modified: float


class Bucket(Protocol):
    """A bucket, or a part of one; for one event loop.

    Every method may raise `BucketError`, after retries of seconds: the store is away, or takes it
    not from us.
    """

    @property
    def name(self) -> str:
        """As it is called in messages: the URL without credentials."""
        ...

    async def put(
        self,
        key: str,
        data: bytes | pathlib.Path,
        *,
        create: bool = True,
        media_type: str | None = None,
    ) -> bool:
        """Writes an object; False if only a new one was to be made and there is one.

        Args:
            key: of the object.
            data: the content, or the file that has it, which is not read as a whole if it is large.
            create: whether an object that is there stays as it is.
            media_type: what a store tells those who read it by a URL.

        Raises:
            OSError: the file cannot be read.
        """
        ...

    async def get(self, key: str) -> bytes:
        """All of an object.

        Raises:
            ObjectMissing: there is none.
        """
        ...

    def stream(self, key: str, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """The bytes from `start` to before `end`, piece by piece; fewer if the object has fewer.

        Raises:
            ObjectMissing: there is none.
        """
        ...

    async def head(self, key: str) -> Stat | None:
        """What is known of an object; None if there is none."""
        ...

    async def list(self, prefix: str) -> list[Stat]:
        """All objects whose keys begin with a prefix that ends with `/`, or is empty."""
        ...

    async def delete_all(self, prefix: str) -> int:
        """Removes all objects below a prefix that ends with `/`; returns how many there were."""
        ...

    async def delete(self, key: str) -> None:
        """Removes an object, if it is there."""
        ...

    async def copy(self, key: str, to: str) -> None:
        """Writes an object's content under another key, inside the store.

        Raises:
            ObjectMissing: there is none.
        """
        ...

    async def url(self, key: str, seconds: int) -> str | None:
        """A URL by which anyone can read an object for so long; None where nothing is signed."""
        ...


def open_bucket(url: str, *, setting: str = SETTING) -> Bucket:
    """The bucket of a URL; nothing is asked of it yet.

    Args:
        url: `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX`, whose credentials are where Amazon's and
            Google's tools look for them; or a folder, as a path or a `file://` URL.
        setting: what whoever wrote it knows it by; messages name it.

    Raises:
        BucketUrlError: it is none of these.
        BucketError: it cannot be used; says what to do.
        MissingPackageError: a package is not installed.
    """
    parts = urlsplit(url)
    try:
        match parts.scheme:
            case "s3":
                from wan_tpu.storage.object_store import open_s3

                return open_s3(*_bucket_and_prefix(url, setting), setting=setting)
            case "gs":
                from wan_tpu.storage.google_bucket import open_gs

                return open_gs(*_bucket_and_prefix(url, setting), setting=setting)
            case "" | "file":
                from wan_tpu.storage.object_store import open_folder

                if parts.netloc not in ("", "localhost") or not parts.path:
                    raise BucketUrlError(f"{setting} is {url!r}; it is {SCHEMES}")
                path = unquote(parts.path) if parts.scheme else url
                return open_folder(pathlib.Path(path), setting=setting)
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"files in {parts.scheme or 'file'}:// need the package {error.name}: "
            "pip install 'wan_tpu[fleet]'"
        ) from None
    raise BucketUrlError(f"{setting} begins with {parts.scheme}://; it is {SCHEMES}")


async def check_bucket(bucket: Bucket, *, redirect: bool) -> None:
    """Makes sure at a start that a bucket can be listed, written, read and emptied.

    Args:
        bucket: to try.
        redirect: whether clients are to be sent to it, `files_redirect` of the settings.

    Raises:
        BucketError: it is not there, not reached, or does less; says what to do.
    """
    await bucket.list("checks/")
    key = f"checks/{secrets.token_hex(8)}"
    await bucket.put(key, b"first")
    try:
        if await bucket.put(key, b"second") or await bucket.get(key) != b"first":
            raise BucketError(
                f"{bucket.name}: the store writes over objects that were only to be made anew; it "
                "must know If-None-Match, as S3 does"
            )
        if redirect and await bucket.url(key, 60) is None:
            raise BucketError(
                f"{bucket.name}: WAN_TPU_FILES_REDIRECT needs signed URLs, which s3:// has, and "
                "gs:// with the key file of a service account"
            )
    finally:
        await bucket.delete(key)


def _bucket_and_prefix(url: str, setting: str) -> tuple[str, str]:
    """The name of a bucket and the prefix in it, which is empty or ends with `/`."""
    parts = urlsplit(url)
    prefix = parts.path.strip("/")
    if not parts.netloc or parts.query or parts.fragment or "@" in parts.netloc:
        # What was written is not repeated: it may hold a secret.
        raise BucketUrlError(
            f"{setting} is written {parts.scheme}://BUCKET/PREFIX, with nothing else in it; "
            "credentials come from the environment"
        )
    if any(part in ("", ".", "..") for part in prefix.split("/") if prefix):
        raise BucketUrlError(f"the prefix {prefix!r} of {setting} has an empty or dotted part")
    return parts.netloc, f"{prefix}/" if prefix else ""
