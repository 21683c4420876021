"""Pictures and clips in the body of a request, however clients send them.

As OpenAI's clients do: a file of a form, or a data URL, alone or as `image_url` of an object.
Nothing is fetched from anywhere, and what a client says of a file's type is not believed.
"""

import binascii
import dataclasses
import re
from collections.abc import Mapping

from server.errors import ApiError, shown
from wan_tpu.media import Media, digest_of, media_type_of

EXPECTED = "a file of a form, or a data URL such as data:image/png;base64,iVBORw0..."
EXPECTED_VIDEO = (
    "a file of a form, a data URL such as data:video/mp4;base64,AAAA..., or the id of a completed "
    'video, {"id": "video_..."}'
)

ROLES_OF: Mapping[str, Mapping[str, str]] = {
    "input_reference": {"image": "image", "video": "video"},
    "last_image": {"image": "last_image"},
    "video": {"video": "video"},
}
"""For each field that takes a file: what it may be, and its role of `wan_tpu.media.ROLES` then."""

_FORMATS = {"image": ("PNG", "JPEG", "WebP"), "video": ("MP4", "MOV", "WebM", "Matroska")}
"""Words for what `media_type_of` tells apart."""

_DATA_URL = re.compile(r"data:[^,]{0,100};base64,", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A picture or clip.

    Attributes:
        field: of the body that it came in.
        role: of `wan_tpu.media.ROLES`, by what the first bytes show.
        data: all of it.
        digest: of the data.
    """

    field: str
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


def id_of(value: object) -> object:
    """What an object says in its only field `id`; None for anything else."""
    return value["id"] if isinstance(value, dict) and value.keys() == {"id"} else None


def read_reference(field: str, value: object, *, max_bytes: int) -> Reference:
    """The picture or clip that a client sent.

    Args:
        field: that it came in, of `ROLES_OF`.
        value: bytes of a file, or what the field of a JSON object holds.
        max_bytes: that it may have.

    Raises:
        ApiError: it is something else, cannot be decoded, is too large, or of another type.
    """
    data = value if isinstance(value, bytes) else _decode(field, value)
    if len(data) > max_bytes:
        message = f"{field} has {len(data)} bytes, at most {max_bytes} are taken"
        raise ApiError(413, "upload_too_large", message, param=field)
    kind = (media_type_of(data) or "nothing").partition("/")[0]
    role = ROLES_OF[field].get(kind)
    if role is None:
        begins = f"it begins with {data[:12]!r}" if data else "it is empty"
        message = f"{field} is {_no_kind_of(field)}: {begins}"
        raise ApiError(400, "unsupported_file", message, param=field)
    return Reference(field=field, role=role, data=data, digest=digest_of(data))


def _no_kind_of(field: str) -> str:
    *others, last = [name for kind in ROLES_OF[field] for name in _FORMATS[kind]]
    return f"neither {', '.join(others)} nor {last}"


def _decode(field: str, value: object) -> bytes:
    """The bytes of a data URL."""
    if isinstance(value, dict):
        if value.keys() != {"image_url"}:
            names = ", ".join(map(shown, sorted(value))) or "nothing"
            known = "id or image_url" if field == "video" else "image_url"
            raise _refusal(field, f"an object with {names}; the one field it may have is {known}")
        value = value["image_url"]
    if not isinstance(value, str):
        raise _refusal(field, shown(value))
    start = _DATA_URL.match(value)
    if start is None:
        raise _refusal(field, shown(value))
    try:
        return binascii.a2b_base64(value[start.end() :], strict_mode=True)
    except ValueError as error:
        raise _refusal(field, f"a data URL that cannot be decoded: {error}") from None


def _refusal(field: str, what: str) -> ApiError:
    expected = EXPECTED_VIDEO if field == "video" else EXPECTED
    return ApiError(400, "invalid_value", f"{field} must be {expected}, got {what}", param=field)
