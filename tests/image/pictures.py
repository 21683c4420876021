"""Pictures for tests: files as cameras, drawing programs and attackers make them."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners(width: int = 48, height: int = 32) -> np.ndarray:
    """Red top left, green top right, blue bottom left, white bottom right: no turn is another."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = RED
    pixels[: height // 2, width // 2 :] = GREEN
    pixels[height // 2 :, : width // 2] = BLUE
    pixels[height // 2 :, width // 2 :] = WHITE
    return pixels


def corner_names(pixels: np.ndarray) -> str:
    """The colours of the four corners, clockwise from the top left: `rgwb` for `corners`."""
    names = {RED: "r", GREEN: "g", BLUE: "b", WHITE: "w"}
    colours = np.array(list(names), np.int32)
    found = []
    for row, column in ((4, 4), (4, -5), (-5, -5), (-5, 4)):
        distances = np.abs(colours - pixels[row, column].astype(np.int32)).sum(1)
        assert distances.min() < 40, pixels[row, column]
        found.append(names[tuple(int(c) for c in colours[distances.argmin()])])
    return "".join(found)


def encode(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    """A file by PIL."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int, order: str = "<", kind: int = 3) -> bytes:
    """A TIFF directory with another entry and the orientation."""
    header = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(f"{order}{'HH' if kind == 3 else 'I'}", orientation, *([0] * (kind == 3)))
    entries = struct.pack(f"{order}HHI", 271, 2, 4) + b"Cam\0"
    entries += struct.pack(f"{order}HHI", 274, kind, 1) + value
    return header + struct.pack(f"{order}IH", 8, 2) + entries + b"\0\0\0\0"


def chunk(name: bytes, content: bytes) -> bytes:
    """A part of a PNG file."""
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def png(
    rows: list[bytes], width: int, depth: int, colour_type: int, *extra: tuple[bytes, bytes]
) -> bytes:
    """A PNG file of packed rows, with further parts before the pixels."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(*part) for part in extra)]
    parts.append(chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def insert_png(data: bytes, *parts: tuple[bytes, bytes]) -> bytes:
    """A PNG file with further parts after its header."""
    return data[:33] + b"".join(chunk(*part) for part in parts) + data[33:]


def insert_jpeg(data: bytes, code: int, content: bytes) -> bytes:
    """A JPEG file with a further segment at its begin."""
    return data[:2] + struct.pack(">BBH", 0xFF, code, len(content) + 2) + content + data[2:]


def bare_png(width: int, height: int) -> bytes:
    """A PNG file that claims a size and has hardly any pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")
