"""What the files of MP4, MOV, WebM and Matroska are in themselves: of which kind, and whole.

FFmpeg reads what is there of a file that was cut off, and gives the frames that it can.
"""

from wan_tpu.errors import MediaError
from wan_tpu.image.bounds import what_else
from wan_tpu.media import media_type_of

_READERS = {
    "video/mp4": "mov",
    "video/quicktime": "mov",
    "video/webm": "matroska",
    "video/x-matroska": "matroska",
}
"""FFmpeg's reader by the type of a file."""


def check_clip_file(data: bytes) -> str:
    """Refuses what is no clip, or not all of one.

    Args:
        data: the file.

    Returns:
        The name of FFmpeg's reader for it.

    Raises:
        MediaError: it is of another kind, or ends too early.
    """
    reader = _READERS.get(media_type_of(data) or "")
    if reader is None:
        raise MediaError(f"the clip is neither MP4, MOV, WebM nor Matroska: {what_else(data)}")
    needed = _mp4_bytes(data) if reader == "mov" else _matroska_bytes(data)
    if needed > len(data):
        raise MediaError(
            f"the clip is damaged: its file ends too early, after {len(data)} of {needed} bytes"
        )
    return reader


_MP4_PARTS = (b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"wide", b"mfra", b"sidx")


_MAX_PARTS = 100_000
"""That are looked at: two for each second of a recording in fragments."""


def _mp4_bytes(data: bytes) -> int:
    """How long the file says it is: parts of a length and a name, one behind the other."""
    position = 0
    for _ in range(_MAX_PARTS):
        if position + 8 > len(data):
            break
        length, name = (
            int.from_bytes(data[position : position + 4], "big"),
            data[position + 4 : position + 8],
        )
        smallest = 8
        if length == 1:  # it does not fit, and follows
            length, smallest = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        if length < smallest or (position + length > len(data) and name not in _MP4_PARTS):
            break  # to the end of the file, or what a camera has put behind it
        position += length
    return position


def _matroska_bytes(data: bytes) -> int:
    """How long the file says it is: a header and a segment, which a live recording leaves open."""
    position = 0
    for _ in range(2):
        position += _integer_bytes(data, position)  # the name
        length_bytes = _integer_bytes(data, position)
        bits = 7 * length_bytes
        length = int.from_bytes(data[position : position + length_bytes], "big") & ((1 << bits) - 1)
        if length == (1 << bits) - 1:
            return position
        position += length_bytes + length
    return position


def _integer_bytes(data: bytes, position: int) -> int:
    """Bytes of one of Matroska's integers: one more than the zero bits that it begins with."""
    first = data[position] if position < len(data) else 0
    return 9 - first.bit_length() if first else 1
