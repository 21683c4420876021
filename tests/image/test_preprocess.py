"""Pictures for CLIP against transformers' own processor."""

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from wan_tpu.image.preprocess import for_image_encoder

SIZES = [(224, 224), (640, 360), (360, 640), (1000, 125), (125, 1000), (223, 225), (60, 41), (7, 5)]


@pytest.mark.parametrize("size", SIZES)
def test_equals_transformers(size):
    width, height = size
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    found = for_image_encoder(picture)
    original = CLIPImageProcessorPil()(images=Image.fromarray(picture), return_tensors="np")
    expected = original["pixel_values"][0].transpose(1, 2, 0)
    assert found.dtype == np.float32
    assert found.shape == (224, 224, 3)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("tall", [False, True])
def test_the_edges_of_the_longer_side_are_not_seen(tall):
    """Red where the picture is squashed: red edges far outside of the middle would be seen."""
    picture = np.full((100, 400, 3), 128, np.uint8)
    picture[:, :60] = picture[:, -60:] = (255, 0, 0)
    picture[:8, 180:220] = (0, 255, 0)  # an edge of the shorter side is seen
    found = for_image_encoder(picture.swapaxes(0, 1) if tall else picture)
    found = found.swapaxes(0, 1) if tall else found
    grey = found[112, 112]
    np.testing.assert_allclose(found[112, [0, -1]], [grey, grey], atol=1e-6)
    assert found[4, 112, 1] > grey[1] + 1


def test_another_size():
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    original = CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    expected = original(images=Image.fromarray(picture), return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(for_image_encoder(picture, 28), expected.transpose(1, 2, 0))
