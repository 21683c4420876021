"""What the files of clips are in themselves: of which kind, and whole.

FFmpeg reads what is there of a file that was cut off, and gives the frames that it can.
"""

import io
from collections.abc import Callable, Collection

from wan_tpu.errors import MediaError
from wan_tpu.image.bounds import what_else
from wan_tpu.media import media_type_of

HEAD_BYTES = 64
"""Of a file, by which its kind is known."""

AVI, GIF = "video/x-msvideo", "image/gif"
"""Read where they are learnt from. Nobody sends them to the service: FFmpeg's AVI reader looks for
subtitles in other formats, and each format more is one more way in."""

_NAMES = {
    "video/mp4": "MP4",
    "video/quicktime": "MOV",
    "video/webm": "WebM",
    "video/x-matroska": "Matroska",
    AVI: "AVI",
    GIF: "GIF",
}

_READERS = {
    "video/mp4": "mov",
    "video/quicktime": "mov",
    "video/webm": "matroska",
    "video/x-matroska": "matroska",
    AVI: "avi",
    GIF: "gif",
}
"""FFmpeg's reader by the type of a file."""


def clip_type_of(head: bytes) -> str | None:
    """As `media_type_of`, which does not know AVI and GIF."""
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return AVI
    return GIF if head[:6] in (b"GIF87a", b"GIF89a") else media_type_of(head)


def check_clip_file(file: io.BufferedIOBase, types: Collection[str]) -> str:
    """Refuses what is no clip, or not all of one.

    Args:
        file: can be sought in; is left anywhere.
        types: that are taken, as `clip_type_of` names them.

    Returns:
        The name of FFmpeg's reader for it.

    Raises:
        MediaError: it is of another kind, or ends too early.
    """
    head = _at(file, 0, HEAD_BYTES)
    kind = clip_type_of(head)
    if kind not in types or kind not in _READERS:
        *names, last = [_NAMES[each] for each in types]
        raise MediaError(f"the clip is neither {', '.join(names)} nor {last}: {what_else(head)}")
    reader = _READERS[kind]
    length = file.seek(0, 2)
    needed = _LENGTHS[reader](file, length)
    if needed > length:
        raise MediaError(
            f"the clip is damaged: its file ends too early, after {length} of {needed} bytes"
        )
    return reader


def _at(file: io.BufferedIOBase, position: int, num_bytes: int) -> bytes:
    """Some bytes of a file, fewer at its end."""
    file.seek(position)
    return file.read(num_bytes)


_MP4_PARTS = (b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"mfra", b"sidx")


_MAX_PARTS = 100_000
"""That are looked at: two for each second of a recording in fragments."""


def _mp4_bytes(file: io.BufferedIOBase, file_bytes: int) -> int:
    """How long the file says it is: parts of a length and a name, one behind the other."""
    position = 0
    for _ in range(_MAX_PARTS):
        if position + 8 > file_bytes:
            break
        header = _at(file, position, 16)
        length, name = int.from_bytes(header[:4], "big"), header[4:8]
        smallest = 8
        if length == 1:  # it does not fit, and follows
            length, smallest = int.from_bytes(header[8:], "big"), 16
        if length < smallest or (position + length > file_bytes and name not in _MP4_PARTS):
            break  # to the end of the file, or what a camera has put behind it
        position += length
    return position


def _matroska_bytes(file: io.BufferedIOBase, file_bytes: int) -> int:
    """How long the file says it is: a header and a segment, which a live recording leaves open."""
    position = 0
    for _ in range(2):
        position += _integer_bytes(file, position)  # the name
        length_bytes = _integer_bytes(file, position)
        bits = 7 * length_bytes
        length = int.from_bytes(_at(file, position, length_bytes), "big") & ((1 << bits) - 1)
        if length == (1 << bits) - 1:
            return position
        position += length_bytes + length
    return position


def _integer_bytes(file: io.BufferedIOBase, position: int) -> int:
    """Bytes of one of Matroska's integers: one more than the zero bits that it begins with."""
    first = _at(file, position, 1)
    return 9 - first[0].bit_length() if first and first[0] else 1


def _avi_bytes(file: io.BufferedIOBase, file_bytes: int) -> int:
    """How long the file says it is: one part, and further ones beyond a gigabyte."""
    position = 0
    while position + 8 <= file_bytes:
        header = _at(file, position, 8)
        length = int.from_bytes(header[4:], "little")
        if header[:4] != b"RIFF" or not length:
            break  # what was put behind it, or a recording that was not ended
        position += 8 + length + (length & 1)
    return min(position, file_bytes) if position == file_bytes + 1 else position


_GIF_TABLE = 0x80
"""Bit of a flag: a table of 3 * 2 ** (1 + lowest three bits) bytes follows."""


def _gif_bytes(file: io.BufferedIOBase, file_bytes: int) -> int:
    """How long the file must be: its parts up to the one that ends it."""
    header = _at(file, 0, 13)
    position = 13 + (_gif_table(header[10]) if len(header) == 13 else 0)
    while position < file_bytes:
        part = _at(file, position, 10)
        if part[0] == ord(";"):
            return position
        if part[0] == ord("!"):  # an extension: its label, then blocks
            position += 2
        elif part[0] == ord(","):  # a picture: where it stands, perhaps a table, bits, blocks
            position += 11 + (_gif_table(part[9]) if len(part) == 10 else 0)
        else:
            return position  # what no standard names: FFmpeg says what it makes of it
        while position < file_bytes and (length := _at(file, position, 1)[0]):
            position += 1 + length
        position += 1
    return position + 1


def _gif_table(flags: int) -> int:
    """Bytes of the table of colours that follows."""
    return 3 << (1 + (flags & 7)) if flags & _GIF_TABLE else 0


_LENGTHS: dict[str, Callable[[io.BufferedIOBase, int], int]] = {
    "mov": _mp4_bytes,
    "matroska": _matroska_bytes,
    "avi": _avi_bytes,
    "gif": _gif_bytes,
}
"""How long a file must be, by FFmpeg's reader, of the file and its length."""
