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


def placeholders(roles: Iterable[str]) -> dict[str, str]:
    """Digests by role of bytes that never come, for a request that is planned and not made."""
    return {role: digest_of(role.encode()) for role in sorted(roles)}


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
    """The type that the first bytes show: one of `PICTURE_TYPES` or `CLIP_TYPES`; None for others.

    A name or a header may say anything; whether the rest can be decoded is another question.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data[4:8] == b"ftyp" and data[8:12] not in _STILL_BRANDS:
        return "video/quicktime" if data[8:12] == b"qt  " else "video/mp4"
    if data[:1] == b"\0" and data[4:8] in _QUICKTIME_ATOMS:
        return "video/quicktime"
    if data[:4] == b"\x1aE\xdf\xa3":
        return _matroska_type(data[:64])
    return None


def _matroska_type(begin: bytes) -> str | None:
    """By the EBML header's name of what follows: element 0x4282, a length, the name."""
    found = re.search(rb"\x42\x82[\x80-\xff](webm|matroska)", begin)
    return {b"webm": "video/webm", b"matroska": "video/x-matroska"}[found[1]] if found else None


PICTURE_TYPES = ("image/png", "image/jpeg", "image/webp")

CLIP_TYPES = ("video/mp4", "video/quicktime", "video/webm", "video/x-matroska")

_STILL_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis", b"crx ")
"""Of files that are built like MP4: HEIC, AVIF and raw pictures."""

_QUICKTIME_ATOMS = (b"moov", b"mdat", b"wide")
"""What QuickTime files begin with that are older than `ftyp`."""

NO_MEDIA = Media()
