"""One clip, picture or file of frames that is learnt from, and what a list of them is."""

import dataclasses
import enum
import errno
import pathlib

from wan_tpu.dataset.faults import Finding
from wan_tpu.errors import InputError
from wan_tpu.image.clip_file import AVI, GIF, HEAD_BYTES, clip_type_of
from wan_tpu.media import CLIP_TYPES, PICTURE_TYPES

CLIP_SUFFIXES = (".mp4", ".m4v", ".mov", ".qt", ".webm", ".mkv", ".avi", ".gif", ".3gp")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FRAMES_SUFFIX = ".npz"
CAPTION_SUFFIX = ".txt"
MANIFEST_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".json")

OTHER_MEDIA = (
    ".flv", ".wmv", ".asf", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts", ".vob", ".ogv", ".ogg", ".rm",
    ".heic", ".heif", ".avif", ".tif", ".tiff", ".bmp", ".jxl", ".jp2", ".exr",
)  # fmt: skip
"""Suffixes of clips and pictures that are not read: of these it is said what to do."""


class Kind(enum.Enum):
    """What an entry is."""

    CLIP = "clip"
    PICTURE = "picture"
    FRAMES = "frames"
    """Decoded frames in a NumPy file."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One clip, picture or file of frames, with what is said of it.

    Attributes:
        path: of the file.
        name: of it as messages, caches and draws call it: from the listing's folder, with slashes;
            the whole path where it lies elsewhere.
        caption: None where there is none; without spaces around it.
        kind: by the file's first bytes; by its suffix where these say nothing.
        source: where it is named: a manifest's name with the line, or the caption's file.
        fps: frames per second of stored frames, where the manifest says it.
    """

    path: pathlib.Path
    name: str
    caption: str | None
    kind: Kind
    source: str = ""
    fps: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What there is to learn from.

    Attributes:
        path: the folder or manifest.
        entries: in the order of their names in a folder, of the lines in a manifest.
        findings: what is not among the entries and why, and what is worth knowing of those.
    """

    path: pathlib.Path
    entries: tuple[Entry, ...]
    findings: tuple[Finding, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which fields of a manifest hold what; None looks for the usual names.

    Attributes:
        path: field of the file's path.
        caption: field of the caption.
    """

    path: str | None = None
    caption: str | None = None

    @classmethod
    def from_text(cls, text: str) -> "Columns":
        """Reads `path=video,caption=text`; either may be left out.

        Raises:
            InputError: it is written otherwise.
        """
        fields = {}
        for part in text.split(","):
            name, equals, column = part.partition("=")
            name, column = name.strip(), column.strip()
            if not equals or not column or name not in ("path", "caption") or name in fields:
                raise InputError(
                    f"columns are written path=NAME,caption=NAME, either or both, got {text!r}; "
                    "for example path=video,caption=text"
                )
            fields[name] = column
        return cls(**fields)


def kind_of_file(path: pathlib.Path) -> Kind | None:
    """What a file is; None if neither its first bytes nor its suffix say.

    Raises:
        OSError: it cannot be read.
    """
    if path.exists() and not path.is_file():  # opening a pipe waits for somebody who writes
        raise OSError(errno.EINVAL, "it is no file")
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    kind = clip_type_of(head)
    if kind in (*CLIP_TYPES, AVI, GIF):
        return Kind.CLIP
    if kind in PICTURE_TYPES:
        return Kind.PICTURE
    suffix = path.suffix.lower()
    if suffix in CLIP_SUFFIXES:
        return Kind.CLIP
    if suffix in PICTURE_SUFFIXES:
        return Kind.PICTURE
    return Kind.FRAMES if suffix == FRAMES_SUFFIX else None


def decode_text(data: bytes) -> str:
    """UTF-8 with or without the mark at its beginning.

    Raises:
        ValueError: it is not UTF-8; says where, or what it is instead.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("it is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"it is not UTF-8: byte 0x{data[error.start]:02x} in line {line}; save it as UTF-8"
        ) from None
