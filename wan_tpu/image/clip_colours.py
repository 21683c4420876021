"""The colours of a clip's frame as RGB, by what the frame says of them or by what players guess."""

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from wan_tpu.image.picture import over_background

if TYPE_CHECKING:
    import av.video.frame

_BT709, _BT601, _BT2020 = 1, 6, 9
"""Of ITU-T H.273, as FFmpeg numbers them: matrices, and two of them primaries, too."""

_MATRICES = (_BT709, 4, 5, _BT601, 7, _BT2020)
"""Those that FFmpeg's scaler knows for luminance and chroma."""

_HDR = (16, 18)
"""Transfers of HDR10 and of HLG, which phones record."""

_TRANSFERS = (_BT709, _BT601, 13, 14, 15, *_HDR)
_WIDE_PRIMARIES = (_BT2020, 11, 12)
"""BT.2020 and the two P3."""


def to_rgb(frame: "av.video.frame.VideoFrame", width: int) -> np.ndarray:
    """A frame's colours on a screen of BT.709.

    Args:
        frame: decoded; what it does not say of its colours is filled in.
        width: pixels, in which they are square.

    Returns:
        `[height, width, 3]`, uint8, RGB.
    """
    from av.video.reformatter import Interpolation

    is_hdr = frame.color_trc in _HDR
    if not frame.format.is_rgb and frame.colorspace not in _MATRICES:
        # As players guess: HD is BT.709, all below BT.601.
        frame.colorspace = _BT2020 if is_hdr else _BT709 if frame.height > 576 else _BT601
    if is_hdr and frame.color_primaries not in _WIDE_PRIMARIES:
        frame.color_primaries = _BT2020
    target: dict[str, Any] = {}
    if frame.color_primaries in _WIDE_PRIMARIES and frame.color_trc in _TRANSFERS:
        target = {"dst_color_trc": _BT709, "dst_color_primaries": _BT709}
    has_alpha = any(component.is_alpha for component in frame.format.components)
    exact = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    pixels = frame.reformat(
        width=width,
        format="rgba" if has_alpha else "rgb24",
        interpolation=Interpolation.BICUBIC | exact | Interpolation.FULL_CHR_H_INP,
        threads=1,
        **target,
    ).to_ndarray()
    if not has_alpha:
        return pixels
    colours, alpha = Image.fromarray(pixels[..., :3].copy()), Image.fromarray(pixels[..., 3].copy())
    return np.asarray(over_background(colours, alpha))
