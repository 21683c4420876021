"""The sizes of videos from pictures, and pictures that cover them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.image.pictures import corner_names, corners
from wan_tpu.errors import MediaError
from wan_tpu.family import SizeRule
from wan_tpu.geometry import Compression
from wan_tpu.image.fit import cover, describe_cover, size_for

AREA_480, AREA_720, AREA_5B = 832 * 480, 1280 * 720, 1280 * 704

TABLE = {
    (1920, 1080): [(832, 464), (1280, 720), (1248, 704)],
    (1024, 1024): [(624, 624), (960, 960), (960, 928)],
    (4032, 3024): [(720, 544), (1104, 816), (1088, 800)],
    (1080, 1920): [(464, 832), (720, 1280), (704, 1248)],
}
"""What Wan's own code gives: at 480p, at 720p, and with the 5B's rule."""


@pytest.mark.parametrize("size", TABLE)
def test_the_sizes_of_wans_own_code(size):
    """Red when width and height are swapped: both ways up are there."""
    low, high, five = TABLE[size]
    rule = SizeRule.AREA
    assert size_for(rule, *size, area=AREA_480, multiples=(16, 16)) == low
    assert size_for(rule, *size, area=AREA_720, multiples=(16, 16)) == high
    best = SizeRule.BEST_OUTPUT_SIZE
    assert size_for(best, *size, area=AREA_5B, multiples=(32, 32)) == five


@pytest.mark.parametrize("size", [(832, 480), (480, 832), (1280, 720), (720, 1280), (1264, 720)])
def test_a_picture_of_a_size_that_can_be_made_keeps_it(size):
    """Red with floating-point roots: 832x480 becomes 832x464."""
    area = size[0] * size[1]
    assert size_for(SizeRule.AREA, *size, area=area, multiples=(16, 16)) == size


def test_the_default_size_of_the_5b_keeps_it():
    best = SizeRule.BEST_OUTPUT_SIZE
    assert size_for(best, 1280, 704, area=AREA_5B, multiples=(32, 32)) == (1280, 704)
    assert size_for(best, 704, 1280, area=AREA_5B, multiples=(32, 32)) == (704, 1280)


def test_832x480_at_720p_is_rounded_down():
    """diffusers' documentation rounds to 1264 first; Wan's own code does not."""
    assert size_for(SizeRule.AREA, 832, 480, area=AREA_720, multiples=(16, 16)) == (1248, 720)


@pytest.mark.parametrize("rule", SizeRule)
@pytest.mark.parametrize("size", [(2000, 3), (3, 2000), (801, 100)])
def test_strips_are_refused(rule, size):
    with pytest.raises(MediaError, match=f"{size[0]}x{size[1]} pixels: one side may be at most 8"):
        size_for(rule, *size, area=AREA_480, multiples=(16, 16))


SIDES = st.integers(1, 8000)


@given(
    st.sampled_from(SizeRule),
    SIDES,
    st.fractions(min_value=1, max_value=8),
    st.booleans(),
    st.integers(2, 60),
    st.sampled_from([(8, (1, 2, 2)), (16, (1, 2, 2)), (8, (1, 2, 1)), (4, (1, 1, 1))]),
)
def test_every_picture_has_a_size_that_the_model_makes(rule, short, ratio, tall, side, kind):
    """Multiples of the model's own, no larger than the area, and turned as the picture is."""
    compression = Compression(spatial=kind[0], patch=kind[1])
    multiples = compression.width_multiple, compression.height_multiple
    long = math.floor(short * ratio)
    width, height = (short, long) if tall else (long, short)
    area = side * side * multiples[0] * multiples[1]
    found = size_for(rule, width, height, area=area, multiples=multiples)
    assert not found[0] % multiples[0]
    assert not found[1] % multiples[1]
    assert found[0] * found[1] <= area or found[0] == multiples[0] or found[1] == multiples[1]
    if multiples[0] == multiples[1] and rule is SizeRule.AREA:
        turned = size_for(rule, height, width, area=area, multiples=multiples)
        assert turned == found[::-1]
        assert (found[0] >= found[1]) == (width >= height) or found[0] == found[1]


def test_a_picture_of_the_size_is_untouched():
    picture = corners()
    assert cover(picture, 48, 32) is picture


@pytest.mark.parametrize("size", [(96, 64), (24, 16), (20, 30), (48, 17), (16, 128)])
def test_a_picture_covers_every_size_from_its_middle(size):
    """Corners stay where they are, and the borders between them in the middle."""
    found = cover(corners(), *size)
    assert found.shape == (size[1], size[0], 3)
    assert found.dtype == np.uint8
    assert corner_names(found) == "rgwb"
    left, right = found[size[1] // 4, size[0] // 2 - 3], found[size[1] // 4, size[0] // 2 + 2]
    assert left[0] > 128 > left[1]
    assert right[1] > 128 > right[0]


def test_nothing_is_distorted():
    """A circle stays one; squeezed to the size, as diffusers does it, it would be an ellipse."""
    rows, columns = np.mgrid[:300, :600]
    disc = (rows - 150) ** 2 + (columns - 300) ** 2 < 100**2
    picture = np.repeat(np.where(disc, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
    found = cover(picture, 160, 160)[..., 0] > 128
    widths = found.any(0).sum(), found.any(1).sum()
    assert abs(int(widths[0]) - int(widths[1])) <= 1
    assert abs(int(widths[0]) - 200 * 160 / 300) <= 2


def test_it_is_lanczos_to_cover_and_a_centre_crop():
    """Wan 2.2's own code in PIL's words."""
    picture = np.random.default_rng(0).integers(0, 256, (45, 80, 3), np.uint8)
    scale = max(64 / 80, 64 / 45)
    image = Image.fromarray(picture).resize((round(80 * scale), round(45 * scale)), Image.LANCZOS)
    left, top = (image.width - 64) // 2, (image.height - 64) // 2
    expected = np.asarray(image.crop((left, top, left + 64, top + 64)))
    np.testing.assert_array_equal(cover(picture, 64, 64), expected)


def test_what_was_done_in_words():
    assert describe_cover((1920, 1080), (832, 464)) == "cover 1920x1080 -> 832x464"
    assert describe_cover((832, 480), (832, 480)) == "832x480 as it is"
