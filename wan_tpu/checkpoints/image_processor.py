"""What a folder says about how pictures are made ready for CLIP, compared with what is done here.

`wan_tpu.image.preprocess` does what CLIP's own configuration says; a folder that asks for anything
else would run, and give other videos than it should.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

from wan_tpu.checkpoints.files import read_json
from wan_tpu.errors import CheckpointError

IMAGE_PROCESSOR = "image_processor"
FILES = ("preprocessor_config.json", "processor_config.json")
"""Of transformers' image processors, and of what it has around one together with a tokenizer."""

_CLIP: Mapping[str, Any] = {
    "do_resize": True,
    "resample": 3,  # bicubic
    "do_center_crop": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def check_image_processor(folder: pathlib.Path, image_size: int) -> None:
    """Refuses a folder whose pictures would have to be made ready in another way.

    Args:
        folder: of the model; it need not say anything.
        image_size: pixels of a side that the image encoder takes.

    Raises:
        CheckpointError: names the value, and the one that is implemented.
    """
    path = next(
        (p for p in (folder / IMAGE_PROCESSOR / name for name in FILES) if p.is_file()), None
    )
    if path is None:
        return
    config = read_json(path)
    config = config.get("image_processor", config)
    square = {"height": image_size, "width": image_size}
    expected = {
        **{name: (value,) for name, value in _CLIP.items()},
        "size": ({"shortest_edge": image_size}, image_size),
        "crop_size": (square, image_size),
    }
    for name, values in expected.items():
        found = config.get(name)
        if found is not None and not any(_is_alike(found, value) for value in values):
            raise CheckpointError(
                f"{path} has {name} = {found!r}; CLIP's own, {values[0]!r}, is implemented"
            )


def _is_alike(found: Any, expected: Any) -> bool:
    """Whether a value is the same, as far as files write it down."""
    if isinstance(expected, list):
        is_long = isinstance(found, list) and len(found) == len(expected)
        return is_long and all(_is_alike(*pair) for pair in zip(found, expected, strict=True))
    if isinstance(expected, float):
        is_number = isinstance(found, int | float)
        return is_number and math.isclose(found, expected, rel_tol=1e-6)
    return found == expected
