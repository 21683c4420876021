"""What PNG, JPEG and WebP files say of their picture: its size, how it is turned, its colours.

Reads the containers alone, decodes nothing. What a decoder gets afterwards are the parts that it
needs for the pixels and no others: text, thumbnails and other metadata cannot trouble it.

Sources: PNG (W3C, 3rd edition), ITU-T T.81 with Adobe's and Exif's markers, Google's WebP
container specification.
"""

import dataclasses
import re
import struct
import zlib
from collections.abc import Iterator

from wan_tpu.errors import MediaError
from wan_tpu.image.bounds import what_else
from wan_tpu.image.orientation import swaps_sides
from wan_tpu.media import media_type_of

MAX_PARTS = 100_000
"""Chunks or segments of one file; a large picture has some thousands."""

MAX_PROFILE_BYTES = 8 << 20
"""Of a colour profile when unpacked; a printer's has one or two MiB."""

MAX_SCANS = 200
"""Of a progressive JPEG: each passes over the whole picture. Encoders write about ten."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PictureFile:
    """One picture in its file.

    Attributes:
        kind: `PNG`, `JPEG` or `WebP`.
        width: pixels as they are stored, before they are turned.
        height: likewise.
        orientation: Exif's, 1 to 8; 1 is as stored.
        profile: ICC colour profile; None for none, which means sRGB.
        parts: the file without what its pixels do not need.
        bit_depth: of a sample.
        palette: PNG's, 3 bytes a colour; empty for none.
        transparency: PNG's `tRNS`: what is transparent in a picture without alpha.
    """

    kind: str
    width: int
    height: int
    orientation: int = 1
    profile: bytes | None = None
    parts: tuple[bytes | memoryview, ...]
    bit_depth: int = 8
    palette: bytes = b""
    transparency: bytes | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, as seen."""
        swapped = swaps_sides(self.orientation)
        return (self.height, self.width) if swapped else (self.width, self.height)


def read_picture_file(data: bytes) -> PictureFile:
    """Reads what a file says of its picture.

    Raises:
        MediaError: it is of another kind, ends too early, is damaged, or is animated.
    """
    readers = {"image/png": _read_png, "image/jpeg": _read_jpeg, "image/webp": _read_webp}
    reader = readers.get(media_type_of(data) or "")
    if reader is None:
        raise MediaError(f"the picture is neither PNG, JPEG nor WebP: {what_else(data)}")
    return reader(memoryview(data))


def damaged(kind: str, why: str) -> MediaError:
    """The error of a file that cannot be read."""
    return MediaError(f"the {kind} picture is damaged: {why}")


def _too_short(kind: str) -> MediaError:
    return damaged(kind, "its file ends too early")


def _animated(kind: str, num_frames: int) -> MediaError:
    return MediaError(
        f"the {kind} picture is animated, with {num_frames} frames; a single picture is taken, or "
        "a clip as MP4, MOV or WebM"
    )


def _counted(kind: str) -> Iterator[None]:
    """As many turns as a file may have parts."""
    for _ in range(MAX_PARTS):
        yield
    raise damaged(kind, f"its file has more than {MAX_PARTS} parts")


# PNG

_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Bits of a sample by colour type: grey, RGB, palette, grey with alpha, RGB with alpha."""


def _read_png(data: memoryview) -> PictureFile:
    header, palette, transparency, profile, orientation = b"", b"", None, None, 1
    parts: list[bytes | memoryview] = [data[:8]]
    has_pixels = False
    for name, content, chunk in _png_chunks(data):
        if not header and name != b"IHDR":
            raise damaged("PNG", "it does not begin with its header")
        if name in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
                raise damaged("PNG", f"a part {name.decode()} does not match its checksum")
            parts.append(chunk)
        if name == b"IHDR":
            if header or len(content) != 13:
                raise damaged("PNG", "its header has a wrong length, or comes twice")
            header = bytes(content)
        elif name == b"PLTE":
            palette = bytes(content)
        elif name == b"IDAT":
            has_pixels = True
        elif name == b"tRNS":
            transparency = bytes(content)
        elif name == b"eXIf":
            orientation = _orientation(bytes(content))
        elif name == b"iCCP":
            profile = _png_profile(bytes(content))
        elif name == b"acTL" and (frames := int.from_bytes(content[:4], "big")) > 1:
            raise _animated("PNG", frames)
    if not has_pixels:
        raise damaged("PNG", "it has no pixels")
    width, height, bit_depth, colour_type = struct.unpack(">IIBB", header[:10])
    if bit_depth not in _PNG_DEPTHS.get(colour_type, ()):
        raise damaged("PNG", f"there is no colour type {colour_type} with {bit_depth} bits")
    if colour_type == 3 and (not palette or len(palette) % 3 or len(palette) > 768):
        raise damaged("PNG", f"its palette has {len(palette)} bytes")
    return PictureFile(
        kind="PNG",
        width=width,
        height=height,
        orientation=orientation,
        profile=profile,
        parts=tuple(parts),
        bit_depth=bit_depth,
        palette=palette,
        transparency=transparency,
    )


def _png_chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview, memoryview]]:
    """Name, content and all bytes of each part; what follows the last is left alone."""
    position = 8
    for _ in _counted("PNG"):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        if len(data) < max(end, position + 12):
            raise _too_short("PNG")
        chunk = data[position:end]
        name = bytes(chunk[4:8])
        yield name, chunk[8:-4], chunk
        if name == b"IEND":
            return
        position = end


def _png_profile(content: bytes) -> bytes | None:
    """The colour profile: a name, a zero, how it is packed, the packed bytes."""
    _, _, packed = content.partition(b"\0")
    unpacker = zlib.decompressobj()
    try:
        profile = unpacker.decompress(packed[1:], MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return profile if unpacker.eof else None


# JPEG

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_NEEDED = _FRAMES | {0xC4, 0xCC, 0xDB, 0xDD, 0xE0, 0xEE}
"""Tables, restart interval, JFIF, and Adobe's marker, which says how colours are meant."""

_SCAN, _END = 0xDA, 0xD9

_MARKER = re.compile(rb"\xff([^\xff])", re.DOTALL)


def _read_jpeg(data: memoryview) -> PictureFile:
    frame, exif = b"", b""
    profiles: dict[int, bytes] = {}
    parts: list[bytes | memoryview] = [data[:2]]
    for code, content, segment in _jpeg_segments(data):
        if code in _NEEDED:
            parts.append(segment)
        if code in _FRAMES:
            if frame or len(content) < 6:
                raise damaged("JPEG", "its header is too short, or comes twice")
            frame = bytes(content[:6])
        elif code == 0xE1 and content[:6] == b"Exif\0\0":
            exif = exif or bytes(content[6:])
        elif code == 0xE2 and content[:12] == b"ICC_PROFILE\0" and len(content) >= 14:
            profiles[content[12]] = bytes(content[14:])  # 255 of them at most, 64 kB each
        elif code == _SCAN:
            parts.append(segment)
            _check_scans(bytes(segment))
    if not frame:
        raise damaged("JPEG", "it has no pixels")
    precision, height, width, channels = struct.unpack(">BHHB", frame)
    if precision != 8 or channels not in (1, 3, 4):
        raise MediaError(
            f"the JPEG picture has {channels} channels of {precision} bits; 1, 3 or 4 of 8 bits "
            "are taken: save it as PNG"
        )
    return PictureFile(
        kind="JPEG",
        width=width,
        height=height,
        orientation=_orientation(exif),
        profile=b"".join(profiles[number] for number in sorted(profiles)) or None,
        parts=tuple(parts),
    )


def _jpeg_segments(data: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Code, content and all bytes of each segment; the last is all from the first scan on."""
    position = 2
    for _ in _counted("JPEG"):
        # Bytes between segments are not allowed, but cameras leave some.
        found = _MARKER.search(data, position)
        if found is None:
            raise _too_short("JPEG")
        position, code = found.end() - 1, found[1][0]
        if code == _END:
            return
        if code in (0x00, 0x01) or 0xD0 <= code <= 0xD8:
            continue  # of no length
        if position + 3 > len(data):
            raise _too_short("JPEG")
        end = position + 1 + int.from_bytes(data[position + 1 : position + 3], "big")
        if end > len(data) or end < position + 3:
            raise _too_short("JPEG")
        if code == _SCAN:
            yield code, data[position + 3 : end], data[position - 1 :]
            return
        yield code, data[position + 3 : end], data[position - 1 : end]
        position = end


def _check_scans(rest: bytes) -> None:
    """Refuses a file that keeps a decoder busy for minutes.

    Args:
        rest: all from the first scan on; in it, a scan's code stands at a scan's begin alone.
    """
    end = rest.find(b"\xff\xd9")
    scans = rest.count(b"\xff\xda", 0, end if end >= 0 else len(rest))
    if scans > MAX_SCANS:
        raise MediaError(
            f"the JPEG picture has {scans} scans, at most {MAX_SCANS} are taken: save it anew"
        )


# WebP


def _read_webp(data: memoryview) -> PictureFile:
    end = 8 + int.from_bytes(data[4:8], "little")
    if len(data) + (end & 1) < end:
        raise _too_short("WebP")
    size, profile, orientation, num_frames = None, None, 1, 0
    for name, content in _webp_chunks(data[:end]):
        if name == b"VP8X" and size is None and len(content) >= 10:
            width, height = content[4:7], content[7:10]
            size = int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
        elif name == b"VP8 " and size is None and content[3:6] == b"\x9d\x01\x2a":
            width, height = struct.unpack("<HH", content[6:10].tobytes().ljust(4, b"\0"))
            size = width & 0x3FFF, height & 0x3FFF
        elif name == b"VP8L" and size is None and content[:1] == b"\x2f":
            bits = int.from_bytes(content[1:5], "little")
            size = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        elif name == b"ICCP" and len(content) <= MAX_PROFILE_BYTES:
            profile = bytes(content)
        elif name == b"EXIF":
            orientation = _orientation(bytes(content).removeprefix(b"Exif\0\0"))
        num_frames += name == b"ANMF"
    if num_frames > 1:
        raise _animated("WebP", num_frames)
    if size is None:
        raise damaged("WebP", "it does not begin with its header")
    return PictureFile(
        kind="WebP",
        width=size[0],
        height=size[1],
        orientation=orientation,
        profile=profile,
        parts=(data[:end],),
    )


def _webp_chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Name and content of each part."""
    position = 12
    for _ in _counted("WebP"):
        if position + 8 > len(data):
            return
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        end = position + 8 + length
        if end > len(data):
            raise _too_short("WebP")
        yield bytes(data[position : position + 4]), data[position + 8 : end]
        position = end + (length & 1)


# Exif


def _orientation(exif: bytes) -> int:
    """Tag 274 of the first directory of a TIFF file; 1 where it is missing or makes no sense."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return 1
    (start,) = struct.unpack_from(f"{order}I", exif, 4)
    if start + 2 > len(exif):
        return 1
    (num_entries,) = struct.unpack_from(f"{order}H", exif, start)
    for index in range(num_entries):
        position = start + 2 + 12 * index
        if position + 12 > len(exif):
            return 1
        tag, kind, count = struct.unpack_from(f"{order}HHI", exif, position)
        if tag == 274 and count == 1 and kind in (3, 4):
            form = {3: "H", 4: "I"}[kind]
            (value,) = struct.unpack_from(f"{order}{form}", exif, position + 8)
            return value if 1 <= value <= 8 else 1
    return 1
