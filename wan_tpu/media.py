"""The pictures and clips of a request: its bytes by their digest. No decoder here, and no JAX.

A `VideoRequest` names them by role and digest and stays JSON; the bytes travel beside it, and
whoever receives them compares: what is not of its digest is never used.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping

from wan_tpu.errors import MediaError

ROLES = ("image", "last_image", "video")
"""The first frame, the last frame, and a clip to begin from: names of fields of `VideoRequest`."""

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")

MAX_MEDIA_BYTES = 128 << 20
"""Of all pictures and clips of one request together; every process of a slice holds them."""


def digest_of(data: bytes) -> str:
    """`sha256:` and 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Media(Mapping[str, bytes]):
    """Bytes by their digest, each of them checked; cannot be changed."""

    def __init__(self, contents: Mapping[str, bytes] | None = None):
        """Takes bytes over.

        Args:
            contents: bytes by digest.

        Raises:
            MediaError: some are not of their digest, or they are too many; names them.
        """
        self._contents = dict(contents or {})
        for digest, data in self._contents.items():
            found = digest_of(data)
            if found != digest:
                raise MediaError(f"bytes that should be {digest} are {found}, {len(data)} bytes")
        check_size(len(data) for data in self._contents.values())

    @classmethod
    def of(cls, *contents: bytes) -> "Media":
        """Those of some bytes.

        Raises:
            MediaError: they are too many.
        """
        return cls({digest_of(data): data for data in contents})

    def __getitem__(self, digest: str) -> bytes:
        return self._contents[digest]

    def __iter__(self) -> Iterator[str]:
        return iter(self._contents)

    def __len__(self) -> int:
        return len(self._contents)

    def only(self, wanted: Mapping[str, str]) -> "Media":
        """Exactly those that a request names.

        Args:
            wanted: digest by role, `VideoRequest.media`.

        Raises:
            MediaError: one is not there; names its role and digest.
        """
        for role, digest in wanted.items():
            if digest not in self._contents:
                raise MediaError(f"the request's {role} is {digest}, whose bytes did not come")
        return Media({digest: self._contents[digest] for digest in wanted.values()})


def check_size(sizes: Iterable[int]) -> None:
    """Refuses more bytes than one request may carry.

    Raises:
        MediaError: they are too many.
    """
    total = sum(sizes)
    if total > MAX_MEDIA_BYTES:
        raise MediaError(
            f"the pictures and clips of a request have {total} bytes together, at most "
            f"{MAX_MEDIA_BYTES} are taken"
        )


def media_type_of(data: bytes) -> str | None:
    """The type that the first bytes show: PNG, JPEG, WebP or MP4; None for any other.

    A name or a header may say anything; whether the rest can be decoded is another question.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:8] == b"ftyp" and data[8:12] not in _STILL_BRANDS:
        return "video/mp4"
    return None


_STILL_BRANDS = (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis", b"qt  ")
"""Of files that are built like MP4: HEIC and AVIF pictures, QuickTime."""

NO_MEDIA = Media()
