"""`input_reference`: a picture or clip that a video is to begin with, however clients send it.

As OpenAI's clients do: a file of a form, or in JSON a data URL, alone or as `image_url` of an
object. Nothing is fetched from anywhere, and what a client says of a file's type is not believed.
"""

import binascii
import dataclasses
import re

from server.errors import ApiError, shown
from wan_tpu.media import Media, digest_of, media_type_of

FIELD = "input_reference"

EXPECTED = "a file of a form, or a data URL such as data:image/png;base64,iVBORw0..."

_DATA_URL = re.compile(r"data:[^,]{0,100};base64,", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A picture or clip.

    Attributes:
        role: of `wan_tpu.media.ROLES`, by what the first bytes show.
        data: all of it.
        digest: of the data.
    """

    role: str
    data: bytes
    digest: str

    @property
    def media(self) -> Media:
        """The bytes by their digest."""
        return Media({self.digest: self.data})


def is_left_out(value: object) -> bool:
    """Whether it is what programs send of an input that nobody filled in."""
    return value is None or (isinstance(value, str) and not value)


def read_reference(value: object, *, max_bytes: int) -> Reference:
    """The picture or clip that a client sent.

    Args:
        value: bytes of a file, or what the field of a JSON object holds.
        max_bytes: that it may have.

    Raises:
        ApiError: it is something else, cannot be decoded, is too large, or of another type.
    """
    data = value if isinstance(value, bytes) else _decode(value)
    if len(data) > max_bytes:
        message = f"{FIELD} has {len(data)} bytes, at most {max_bytes} are taken"
        raise ApiError(413, "upload_too_large", message, param=FIELD)
    kind = media_type_of(data)
    if kind is None:
        message = f"{FIELD} is neither PNG, JPEG, WebP nor MP4: it begins with {data[:12]!r}"
        raise ApiError(400, "unsupported_file", message, param=FIELD)
    role = "video" if kind.startswith("video/") else "image"
    return Reference(role=role, data=data, digest=digest_of(data))


def _decode(value: object) -> bytes:
    """The bytes of a data URL."""
    if isinstance(value, dict):
        if value.keys() != {"image_url"}:
            names = ", ".join(map(shown, sorted(value))) or "nothing"
            raise _refusal(f"an object with {names}; the one field it may have is image_url")
        value = value["image_url"]
    if not isinstance(value, str):
        raise _refusal(shown(value))
    start = _DATA_URL.match(value)
    if start is None:
        raise _refusal(shown(value))
    try:
        return binascii.a2b_base64(value[start.end() :], strict_mode=True)
    except ValueError as error:
        raise _refusal(f"a data URL that cannot be decoded: {error}") from None


def _refusal(what: str) -> ApiError:
    return ApiError(400, "invalid_value", f"{FIELD} must be {EXPECTED}, got {what}", param=FIELD)
