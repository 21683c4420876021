"""A picture as CLIP's vision tower takes it. No JAX."""

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of red, green and blue in [0, 1], over the pictures that CLIP was trained with."""


def for_image_encoder(
    picture: UInt8[np.ndarray, "height width 3"], size: int = 224
) -> Float32[np.ndarray, "size size 3"]:
    """The middle of a picture, as diffusers' pipelines show it to CLIP.

    As transformers' `CLIPImageProcessor`: the shorter side becomes `size` (bicubic), the middle of
    the longer is cut out. A wide picture loses its sides. Wan's own code (`modules/clip.py`)
    squashes the whole picture into the square instead, so that CLIP sees all of it, distorted;
    results on wide pictures differ from those of that code, and equal those of diffusers.

    Args:
        picture: `[height, width, 3]`, uint8, RGB: the one that was given, not yet fitted to the
            video's size.
        size: pixels of a side, `ImageEncoderConfig.image_size`.

    Returns:
        `[size, size, 3]`, float32, normalised by CLIP's mean and deviation.
    """
    height, width, _ = picture.shape
    short = min(height, width)
    new_height, new_width = (side * size // short for side in (height, width))
    image = Image.fromarray(picture).resize((new_width, new_height), Image.Resampling.BICUBIC)
    top, left = (new_height - size) // 2, (new_width - size) // 2
    middle = np.asarray(image)[top : top + size, left : left + size]
    scaled = (middle * np.float64(1 / 255)).astype(np.float32)
    return (scaled - np.array(CLIP_MEAN, np.float32)) / np.array(CLIP_STD, np.float32)
