"""What a picture or clip may be, asked before anything is decoded."""

from wan_tpu.errors import MediaError
from wan_tpu.media import media_type_of

MAX_RATIO = 8
"""Of the longer side to the shorter: a strip of 2000x3 would ask for a video of 16x16304."""

MAX_PICTURE_PIXELS = 1 << 26
"""8192x8192, more than a phone's 64 megapixels; 200 MB as RGB. Some bytes can claim far more."""

MAX_VIDEO_PIXELS = 1 << 24
"""Of one frame of a clip: 4096x4096, twice 4K."""


def check_pixels(width: int, height: int, *, what: str, max_pixels: int) -> None:
    """Refuses what is empty, too large or too narrow.

    Args:
        width: pixels, as the file's header says.
        height: likewise.
        what: of which messages speak: `picture`, `clip`.
        max_pixels: that it may have.

    Raises:
        MediaError: says the size, and what is taken.
    """
    size = f"the {what} has {width}x{height} pixels"
    if width < 1 or height < 1:
        raise MediaError(f"{size}; at least 1x1 is needed")
    if width * height > max_pixels:
        side = round(max_pixels**0.5)
        raise MediaError(f"{size}; at most {side}x{side} = {max_pixels} are taken: make it smaller")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise MediaError(
            f"{size}; one side may be at most {MAX_RATIO} times the other: crop it, for example "
            f"to {min(width, MAX_RATIO * height)}x{min(height, MAX_RATIO * width)}"
        )


def what_else(data: bytes) -> str:
    """In words: what a file is that is not what was expected."""
    if not data:
        return "it is empty, 0 bytes"
    kind = media_type_of(data)
    return f"it is {kind}" if kind else f"its file begins with {data[:12]!r}"
