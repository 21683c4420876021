"""The colours of a clip's frame as RGB, by what the frame says of them or by what players guess."""

from typing import TYPE_CHECKING

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


class ToRgb:
    """Frames of one clip as RGB.

    FFmpeg's scaler is kept from frame to frame: for HDR it makes a table of all colours first,
    which takes a second or more.
    """

    def __init__(self) -> None:
        from av.video.reformatter import Interpolation, VideoReformatter

        self._scaler = VideoReformatter()
        exact = Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
        self._how = Interpolation.BICUBIC | exact | Interpolation.FULL_CHR_H_INP

    def __call__(self, frame: "av.video.frame.VideoFrame", width: int) -> np.ndarray:
        """A frame's colours on a screen of BT.709.

        Args:
            frame: decoded; what it does not say of its colours is filled in.
            width: pixels, in which they are square.

        Returns:
            `[height, width, 3]`, uint8, RGB.
        """
        has_alpha = any(component.is_alpha for component in frame.format.components)
        target = _fill_in(frame)
        pixels = self._scaler.reformat(
            frame,
            width=width,
            format="rgba" if has_alpha else "rgb24",
            interpolation=self._how,
            threads=1,
            dst_color_trc=target,
            dst_color_primaries=target,
        ).to_ndarray()
        if not has_alpha:
            return pixels
        colours, alpha = (
            Image.fromarray(part.copy()) for part in (pixels[..., :3], pixels[..., 3])
        )
        return np.asarray(over_background(colours, alpha))


def is_hdr(frame: "av.video.frame.VideoFrame") -> bool:
    """Whether a frame is HDR10 or HLG."""
    return frame.color_trc in _HDR


def _fill_in(frame: "av.video.frame.VideoFrame") -> int | None:
    """Fills in what a frame does not say of its colours.

    Returns:
        The transfer and primaries that it is to be converted to; None for its own.
    """
    wide_range = is_hdr(frame)
    if not frame.format.is_rgb and frame.colorspace not in _MATRICES:
        # As players guess: HD is BT.709, all below BT.601.
        frame.colorspace = _BT2020 if wide_range else _BT709 if frame.height > 576 else _BT601
    if wide_range and frame.color_primaries not in _WIDE_PRIMARIES:
        frame.color_primaries = _BT2020
    is_wide = frame.color_primaries in _WIDE_PRIMARIES and frame.color_trc in _TRANSFERS
    return _BT709 if is_wide else None
