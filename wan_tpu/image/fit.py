"""The size of a video made from a picture, and a picture made to fit a size. No JAX."""

import math
from fractions import Fraction

import numpy as np
from PIL import Image

from wan_tpu.errors import MediaError
from wan_tpu.family import SizeRule
from wan_tpu.image.bounds import MAX_RATIO


def size_for(
    rule: SizeRule, width: int, height: int, *, area: int, multiples: tuple[int, int]
) -> tuple[int, int]:
    """The size of a video whose first frame is a picture.

    Args:
        rule: the model's.
        width: of the picture, pixels.
        height: likewise.
        area: pixels of a frame of the model's default size, about which it stays.
        multiples: that width and height must be of: `Compression.width_multiple` and
            `height_multiple`.

    Returns:
        Width and height, multiples of `multiples`.

    Raises:
        MediaError: the picture is too narrow for a video.
    """
    if max(width, height) > MAX_RATIO * min(width, height):
        raise MediaError(
            f"no video has the shape of {width}x{height} pixels: one side may be at most "
            f"{MAX_RATIO} times the other"
        )
    if rule is SizeRule.AREA:
        return _area_rule(width, height, area, multiples)
    return _best_output_size(width, height, area, multiples)


def _area_rule(width: int, height: int, area: int, multiples: tuple[int, int]) -> tuple[int, int]:
    """Each side rounded down by itself, as Wan 2.1's `image2video.py`.

    Roots are exact here. Wan's own floating-point ones come out just below some whole numbers, so
    that there a picture of 832x480 becomes a video of 832x464; diffusers rounds and keeps it.
    """
    sides = math.isqrt(area * width // height), math.isqrt(area * height // width)
    return _down(sides[0], multiples[0]), _down(sides[1], multiples[1])


def _best_output_size(
    width: int, height: int, area: int, multiples: tuple[int, int]
) -> tuple[int, int]:
    """One side rounded down and the other made of the area; of both ways the one nearer in ratio.

    Wan 2.2's `best_output_size` in `utils/utils.py`; the area is never exceeded.
    """
    wide = _down(math.isqrt(area * width // height), multiples[0])
    width_first = wide, _down(area // wide, multiples[1])
    high = _down(math.isqrt(area * height // width), multiples[1])
    height_first = _down(area // high, multiples[0]), high

    def distance(size: tuple[int, int]) -> Fraction:
        change = Fraction(width * size[1], height * size[0])
        return max(change, 1 / change)

    # Where both are as near, Wan's code takes the second.
    return min(height_first, width_first, key=distance)


def _down(value: int, multiple: int) -> int:
    """The multiple at or below, at least one."""
    return max(value // multiple, 1) * multiple


def cover(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """A picture that fills a size: made larger or smaller until it covers it, its middle cut out.

    As Wan 2.2's `textimage2video.py` does it, with Lanczos. Nothing is distorted, unlike in
    diffusers, which squeezes. A picture of the size is returned as it is.

    Args:
        picture: `[height, width, 3]`, uint8, RGB.
        width: wanted, pixels.
        height: likewise.

    Returns:
        `[height, width, 3]`, uint8, RGB.
    """
    assert picture.dtype == np.uint8, picture.dtype
    has_height, has_width, _ = picture.shape
    if (has_width, has_height) == (width, height):
        return picture
    scale = max(Fraction(width, has_width), Fraction(height, has_height))
    covering = round(has_width * scale), round(has_height * scale)
    image = Image.fromarray(picture).resize(covering, Image.Resampling.LANCZOS)
    left, top = (covering[0] - width) // 2, (covering[1] - height) // 2
    return np.asarray(image.crop((left, top, left + width, top + height)))


def describe_cover(from_size: tuple[int, int], to_size: tuple[int, int]) -> str:
    """What `cover` does, for the metadata: `cover 1920x1080 -> 832x464`.

    Args:
        from_size: width and height of the picture.
        to_size: those that are wanted.
    """
    (width, height), (to_width, to_height) = from_size, to_size
    if from_size == to_size:
        return f"{width}x{height} as it is"
    return f"cover {width}x{height} -> {to_width}x{to_height}"
