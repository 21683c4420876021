"""How alike two videos are, frame by frame: PSNR and SSIM. Knows nothing of files; no JAX.

* PSNR = 10 log10(255^2 / MSE), the MSE over the pixels and the three colours; of a video from the
  MSE over all of its frames, as ffmpeg's `psnr` filter averages.
* SSIM of Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to
  Structural Similarity", IEEE TIP 13(4), 2004: a Gaussian window of 11x11 and sigma 1.5, K1 = 0.01,
  K2 = 0.03, where the whole window lies inside the frame; the mean over the three colours, and of a
  video over its frames. `skimage.metrics.structural_similarity` gives the same with
  `gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=-1`.
  ffmpeg's `ssim` filter does not: its windows are 8x8 without weights.
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from wan_tpu.errors import InputError

LARGEST = 255.0
WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * LARGEST) ** 2, (0.03 * LARGEST) ** 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FrameSimilarity:
    """Two frames.

    Attributes:
        mean_squared_error: over pixels and colours, of values from 0 to 255.
        ssim: 1 for equal frames, at least -1.
        largest_difference: of one value.
    """

    mean_squared_error: float
    ssim: float
    largest_difference: int

    @property
    def psnr(self) -> float:
        """Decibels; infinite for equal frames."""
        return psnr_of(self.mean_squared_error)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Similarity:
    """Two videos of one size and length.

    Attributes:
        frames: in their order, at least one.
    """

    frames: tuple[FrameSimilarity, ...]

    @property
    def psnr(self) -> float:
        """Decibels, from the error over all frames; infinite where every pixel is equal."""
        errors = [frame.mean_squared_error for frame in self.frames]
        return psnr_of(sum(errors) / len(errors))

    @property
    def ssim(self) -> float:
        """The mean over the frames."""
        return sum(frame.ssim for frame in self.frames) / len(self.frames)

    @property
    def largest_difference(self) -> int:
        """Of one value of a pixel, from 0 to 255."""
        return max(frame.largest_difference for frame in self.frames)

    @property
    def is_equal(self) -> bool:
        """Whether every pixel of every frame is the same."""
        return self.largest_difference == 0


def psnr_of(mean_squared_error: float) -> float:
    """Decibels of an error of values from 0 to 255; infinite for none."""
    if mean_squared_error == 0:
        return math.inf
    return 10 * math.log10(LARGEST**2 / mean_squared_error)


def compare_frames(first: np.ndarray, second: np.ndarray) -> FrameSimilarity:
    """How alike two frames are.

    Args:
        first: `[height, width, 3]`, uint8. second: of the same shape.

    Raises:
        InputError: a side has fewer pixels than SSIM's window.
    """
    assert first.shape == second.shape, (first.shape, second.shape)
    assert first.dtype == second.dtype == np.uint8, (first.dtype, second.dtype)
    height, width, _ = first.shape
    if min(height, width) < WINDOW:
        raise InputError(
            f"frames of {width}x{height} are too small for SSIM: its window is {WINDOW}x{WINDOW}"
        )
    difference = np.abs(first.astype(np.int16) - second.astype(np.int16))
    largest = int(difference.max())
    if largest == 0:
        return FrameSimilarity(mean_squared_error=0.0, ssim=1.0, largest_difference=0)
    return FrameSimilarity(
        mean_squared_error=float(np.mean(np.square(difference, dtype=np.float64))),
        ssim=_ssim(first, second),
        largest_difference=largest,
    )


def compare_videos(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Similarity:
    """How alike two videos are, of their frames in pairs; arguments and errors as above."""
    return Similarity(frames=tuple(compare_frames(*pair) for pair in pairs))


def _ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Equation 13 of the paper, its mean over all windows and colours."""
    x, y = first.astype(np.float64), second.astype(np.float64)
    mean_x, mean_y = _windowed(x), _windowed(y)
    products, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    variances = _windowed(x * x + y * y) - squares
    covariance = _windowed(x * y) - products
    ratio = (2 * products + C1) * (2 * covariance + C2)
    return float(np.mean(ratio / ((squares + C1) * (variances + C2))))


def _windowed(values: np.ndarray) -> np.ndarray:
    """Means under the Gaussian window: `[height - 10, width - 10, 3]` of `[height, width, 3]`."""
    from scipy import ndimage

    around = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(around**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    inside = slice(WINDOW // 2, -(WINDOW // 2))
    rows = ndimage.correlate1d(values, weights, axis=0)[inside]
    return ndimage.correlate1d(rows, weights, axis=1)[:, inside]
