"""Buckets through obstore: S3's protocol, and a folder that all have mounted.

S3's credentials are found as Amazon's tools find them: the environment, a web identity, the
container's or the machine's role. Errors are classified by what the store said, and repeat nothing
else of it: its answers quote requests.
"""

import asyncio
import contextlib
import datetime
import ipaddress
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, S3Store

from wan_tpu.storage.bucket import BucketError, ObjectMissing, Stat
from wan_tpu.storage.disk import is_disk_full

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

SINGLE_BYTES = 32 << 20
"""Written by one request; more goes in parts, under another name first."""

CHUNK_BYTES = 256 << 10
"""Of an object that is read piece by piece."""

RETRIES: "RetryConfig" = {
    "max_retries": 6,
    "retry_timeout": datetime.timedelta(seconds=10),
    "backoff": {"max_backoff": datetime.timedelta(seconds=2)},
}

TIMEOUTS: "ClientConfig" = {
    "connect_timeout": datetime.timedelta(seconds=3),
    # Until an answer begins, or the next piece of it comes. A request as a whole may take as long
    # as a player that reads slowly.
    "read_timeout": datetime.timedelta(seconds=30),
    "timeout": datetime.timedelta(hours=12),
}


class _ObstoreBucket:
    """What both have in common; see `Bucket`."""

    def __init__(self, store: Any, name: str, setting: str):
        self._store = store
        self._setting = setting
        self.name = name

    async def put(
        self,
        key: str,
        data: bytes | pathlib.Path,
        *,
        create: bool = True,
        media_type: str | None = None,
    ) -> bool:
        """See `Bucket`."""
        attributes = self._attributes(media_type)
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        with self._explained("write"):
            if not create:
                await self._store.put_async(key, data, attributes=attributes)
                return True
            try:
                if size <= SINGLE_BYTES:
                    await self._store.put_async(key, data, mode="create", attributes=attributes)
                else:
                    await self._create_in_parts(key, data)
            except AlreadyExistsError:
                return False
        return True

    async def get(self, key: str) -> bytes:
        """See `Bucket`."""
        with self._explained("read"), _missing(key):
            found = await self._store.get_async(key)
            return bytes(await found.bytes_async())

    async def stream(self, key: str, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """See `Bucket`."""
        with self._explained("read"), _missing(key):
            found = await self._store.get_async(key, options={"range": (start, end)})
            async for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)

    async def head(self, key: str) -> Stat | None:
        """See `Bucket`."""
        with self._explained("read"):
            try:
                return _stat(await self._store.head_async(key))
            except FileNotFoundError as error:
                _check_bucket_is_there(error)
                return None

    async def list(self, prefix: str) -> list[Stat]:
        """See `Bucket`."""
        with self._explained("list"):
            found = await self._store.list(prefix or None).collect_async()
        return [_stat(each) for each in found]

    async def delete_all(self, prefix: str) -> int:
        """See `Bucket`."""
        assert prefix.endswith("/"), prefix
        keys = [each.key for each in await self.list(prefix)]
        with self._explained("delete"):
            if keys:
                await self._store.delete_async(keys)
        return len(keys)

    async def delete(self, key: str) -> None:
        """See `Bucket`."""
        with self._explained("delete"), contextlib.suppress(FileNotFoundError):
            await self._store.delete_async(key)

    async def copy(self, key: str, to: str) -> None:
        """See `Bucket`."""
        with self._explained("write"), _missing(key):
            await self._store.copy_async(key, to)

    async def url(self, key: str, seconds: int) -> str | None:
        """See `Bucket`."""
        return None

    async def _create_in_parts(self, key: str, data: bytes | pathlib.Path) -> None:
        """Writes a large object aside, and gives it its name unless that is taken."""
        aside = f"{key}.{secrets.token_hex(8)}.part"
        try:
            await self._store.put_async(aside, data)
            await self._store.copy_async(aside, key, overwrite=False)
        finally:
            with contextlib.suppress(FileNotFoundError):
                await self._store.delete_async(aside)

    def _attributes(self, media_type: str | None) -> dict[str, str] | None:
        return None

    def _explanation(self, error: Exception, doing: str) -> str:
        raise NotImplementedError

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Generator[None]:
        """Makes the errors of a store ours."""
        try:
            yield
        except (AlreadyExistsError, ObjectMissing):
            raise
        except (BaseError, FileNotFoundError, ValueError) as error:
            raise BucketError(f"{self.name}: {self._explanation(error, doing)}") from error


class S3Bucket(_ObstoreBucket):
    """A bucket of Amazon's S3, or of a store that speaks its protocol."""

    def __init__(
        self, store: S3Store, *, bucket: str, prefix: str, endpoint: str | None, setting: str
    ):
        super().__init__(store, f"s3://{bucket}/{prefix}".rstrip("/"), setting)
        self._bucket = bucket
        self._endpoint = endpoint

    async def url(self, key: str, seconds: int) -> str | None:
        """See `Bucket`."""
        with self._explained("sign"):
            return await obstore.sign_async(
                self._store, "GET", key, datetime.timedelta(seconds=seconds)
            )

    def _attributes(self, media_type: str | None) -> dict[str, str] | None:
        return None if media_type is None else {"Content-Type": media_type}

    def _explanation(self, error: Exception, doing: str) -> str:
        text = str(error)
        code = _s3_code(text)
        where = self._endpoint or "Amazon's S3"
        if code in _BAD_CREDENTIALS or "401 Unauthorized" in text:
            return (
                f"{where} does not take the credentials ({code or '401'}); "
                "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
            )
        if code == "NoSuchBucket":
            return f"there is no bucket {self._bucket} at {where}; check {self._setting}"
        if code in _OTHER_REGION:
            return f"the bucket is in another region ({code}); check AWS_REGION"
        if code == "AccessDenied" or ("403 Forbidden" in text and "169.254." not in text):
            return (
                f"{where} does not let these credentials {doing} ({code or '403'}); check that "
                "they are right and may read, write, list and delete objects there"
            )
        if any(words in text for words in _NO_CREDENTIALS):
            return (
                "there are no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                "give the machine a role"
            )
        if "error sending request" in text or "Connect" in text:
            return f"{where} cannot be reached; check AWS_ENDPOINT_URL, or wait until it is back"
        status = re.search(r"status code: (\d{3})", text)
        said = code or (status and status[1]) or "no whole answer"
        return f"{where} failed to {doing} ({said}); it may be back soon"


_BAD_CREDENTIALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken")
_OTHER_REGION = ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraint")
_NO_CREDENTIALS = ("169.254.", "CredentialProvider", "instance metadata")


class FolderBucket(_ObstoreBucket):
    """A folder, on this machine or mounted by all."""

    def __init__(self, store: LocalStore, path: pathlib.Path, setting: str):
        super().__init__(store, str(path), setting)
        self._path = path

    async def delete_all(self, prefix: str) -> int:
        """See `Bucket`; what a writer left unfinished goes, too, and so do the folders."""
        assert prefix.endswith("/"), prefix
        number = len(await self.list(prefix))
        folder = self._path / prefix
        try:
            await asyncio.to_thread(shutil.rmtree, folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise BucketError(f"{self.name}: {self._explanation(error, 'delete')}") from error
        return number

    def _explanation(self, error: Exception, doing: str) -> str:
        number = re.search(r"\(os error (\d+)\)", str(error))
        reason = os.strerror(int(number[1])) if number else getattr(error, "strerror", None)
        what_to_do = "make room there" if is_disk_full(error) else "check who may use it"
        return (
            f"cannot {doing} in the folder of {self._setting}: {reason or 'it fails'}; {what_to_do}"
        )


def open_s3(bucket: str, prefix: str, *, setting: str) -> S3Bucket:
    """A bucket that is reached by S3's protocol.

    Args:
        bucket: its name.
        prefix: of all keys; empty or with `/` at its end.
        setting: what messages call it by.

    Raises:
        BucketError: the environment says what cannot be used; names the variable.
    """
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    shown = None
    options: ClientConfig = {**TIMEOUTS}
    if endpoint:
        parts = urlsplit(endpoint)
        shown = parts.netloc.rpartition("@")[2]
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BucketError("AWS_ENDPOINT_URL is written https://HOST or http://HOST:PORT")
        if parts.scheme == "http":
            if not (_is_loopback(parts.hostname) or _is_set("AWS_ALLOW_HTTP")):
                raise BucketError(
                    f"AWS_ENDPOINT_URL is http://{shown}, which anyone between can read and "
                    "change; use https, or set AWS_ALLOW_HTTP=true"
                )
            options["allow_http"] = True
    try:
        store = S3Store(
            bucket,
            prefix=prefix or None,
            client_options=options,
            retry_config=RETRIES,
            config={"copy_if_not_exists": os.environ.get("AWS_COPY_IF_NOT_EXISTS", "multipart")},
        )
    except BaseError as error:
        if "Missing AccessKeyId" in str(error) or "Missing SecretAccessKey" in str(error):
            said = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are set together, or neither"
        else:
            said = "one of the variables AWS_... has a value that is none of its own; check them"
        raise BucketError(f"s3://{bucket}: {said}") from error
    return S3Bucket(store, bucket=bucket, prefix=prefix, endpoint=shown, setting=setting)


def open_folder(path: pathlib.Path, *, setting: str) -> FolderBucket:
    """A folder, which is made if it is not there.

    Args:
        path: of it.
        setting: what messages call it by.

    Raises:
        BucketError: it cannot be.
    """
    try:
        path = path.resolve()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FolderBucket(LocalStore(path), path, setting)
    except (OSError, RuntimeError, BaseError) as error:  # RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or error
        raise BucketError(
            f"cannot use the folder {path}: {reason}; name one in {setting} that can be made "
            "or written"
        ) from None


@contextlib.contextmanager
def _missing(key: str) -> Generator[None]:
    """Says of an object that it is missing, and not of its bucket."""
    try:
        yield
    except FileNotFoundError as error:
        _check_bucket_is_there(error)
        raise ObjectMissing(key) from None


def _check_bucket_is_there(error: FileNotFoundError) -> None:
    if _s3_code(str(error)) == "NoSuchBucket":
        raise error


def _s3_code(text: str) -> str | None:
    """The word for programs in an answer of S3."""
    found = re.search(r"<Code>(\w+)</Code>|\(code: (\w+)\)", text)
    return None if found is None else found[1] or found[2]


def _stat(meta: Any) -> Stat:
    return Stat(
        key=meta["path"],
        size=meta["size"],
        etag=meta["e_tag"],
        modified=meta["last_modified"].timestamp(),
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true")
