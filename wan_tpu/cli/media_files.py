"""The pictures and clips that a command line names: `--image`, `--last-image`, `--video`."""

import argparse
import dataclasses
import pathlib
from typing import Any

from wan_tpu.errors import MediaError
from wan_tpu.media import MAX_MEDIA_BYTES, ROLES, Media, digest_of


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MediaFiles:
    """What was read.

    Attributes:
        digests: by role, as a request names them.
        media: the bytes.
    """

    digests: dict[str, str]
    media: Media


def add_media_arguments(parser: Any) -> None:
    """The files, and how much of a clip is replaced."""
    parser.add_argument(
        "--image", metavar="FILE",
        help="PNG, JPEG or WebP that the video begins with, for models that take one",
    )  # fmt: skip
    parser.add_argument(
        "--last-image", metavar="FILE", help="likewise: what it ends with"
    )  # fmt: skip
    parser.add_argument(
        "--video", metavar="FILE", help="a clip that the video is made from, at its frame rate"
    )  # fmt: skip
    parser.add_argument(
        "--strength", type=float,
        help="with --video: the share of the steps that run, above 0 to 1; at 1 nothing of the "
        "clip is left",
    )  # fmt: skip


def read_media_files(parsed: argparse.Namespace) -> MediaFiles:
    """Reads the files that `add_media_arguments` names.

    Raises:
        MediaError: one cannot be read, is empty, or they are too large.
    """
    given = {role: getattr(parsed, role) for role in ROLES}
    contents = {role: _read(role, name) for role, name in given.items() if name is not None}
    return MediaFiles(
        digests={role: digest_of(data) for role, data in contents.items()},
        media=Media.of(*contents.values()),
    )


def _read(role: str, name: str) -> bytes:
    """A file's bytes; one that is too large is not read to its end."""
    what = f"--{role.replace('_', '-')} {name}"
    try:
        with pathlib.Path(name).expanduser().open("rb") as file:
            data = file.read(MAX_MEDIA_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        why = getattr(error, "strerror", None) or str(error)
        raise MediaError(f"{what} cannot be read: {why}") from None
    if not data:
        raise MediaError(f"{what} is empty")
    if len(data) > MAX_MEDIA_BYTES:
        raise MediaError(f"{what} has more than {MAX_MEDIA_BYTES} bytes, the most that is taken")
    return data
