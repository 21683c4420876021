"""PSNR and SSIM against other people's: scikit-image's values, ffmpeg, and the paper's own sums."""

import re
import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from tests.tolerances import SIMILARITY
from wan_tpu.errors import InputError
from wan_tpu.image.similarity import compare_frames, compare_videos


def noisy():
    random = np.random.default_rng(7)
    first = random.integers(0, 256, (24, 40, 3), np.uint8)
    noise = random.integers(-40, 41, first.shape)
    return first, np.clip(first + noise, 0, 255).astype(np.uint8)


def shifted():
    row, column = np.mgrid[:24, :40]
    planes = (6 * column + 2 * row, 9 * row, 3 * column * row)
    first = np.stack([plane % 256 for plane in planes], -1).astype(np.uint8)
    return first, np.roll(first, 2, 1)


SCIKIT_IMAGE = [
    (noisy, 0.9546943280289284, 21.21868668714321),
    (shifted, 0.6203554707858415, 11.526323095466148),
]
"""scikit-image 0.26.0: `structural_similarity(a, b, channel_axis=-1, data_range=255,
gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`, `peak_signal_noise_ratio`."""


@pytest.mark.parametrize(("make", "ssim", "psnr"), SCIKIT_IMAGE)
def test_frames_against_scikit_image(make, ssim, psnr):
    found = compare_frames(*make())
    assert found.ssim == pytest.approx(ssim, rel=SIMILARITY)
    assert found.psnr == pytest.approx(psnr, rel=SIMILARITY)


def direct_ssim(first, second):
    """Window by window, with the moments around each window's own mean."""
    around = np.arange(11) - 5
    weights = np.exp(-(around[:, None] ** 2 + around**2) / 4.5)
    weights /= weights.sum()
    x, y = (
        sliding_window_view(each.astype(float), (11, 11), axis=(0, 1)) for each in (first, second)
    )
    mean_x, mean_y = (np.sum(each * weights, axis=(-2, -1)) for each in (x, y))
    from_x, from_y = x - mean_x[..., None, None], y - mean_y[..., None, None]
    variances = np.sum((from_x**2 + from_y**2) * weights, axis=(-2, -1))
    covariance = np.sum(from_x * from_y * weights, axis=(-2, -1))
    c1, c2 = 2.55**2, 7.65**2
    over = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return np.mean(over / ((mean_x**2 + mean_y**2 + c1) * (variances + c2)))


def test_ssim_by_the_sums_of_the_paper():
    for pair in (noisy(), shifted()):
        assert compare_frames(*pair).ssim == pytest.approx(direct_ssim(*pair), rel=SIMILARITY)


def ffmpeg_psnr(first, second, folder):
    """`psnr_avg` of each frame, and of all, of ffmpeg's filter on RGB."""
    frames, height, width, _ = first.shape
    inputs = []
    for name, video in (("first", first), ("second", second)):
        (folder / name).write_bytes(video.tobytes())
        inputs += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        inputs += ["-i", str(folder / name)]
    graph = "[0:v]format=gbrp[a];[1:v]format=gbrp[b];[a][b]psnr=stats_file=-"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", *inputs]
    done = subprocess.run(
        [*command, "-lavfi", graph, "-f", "null", "-"], capture_output=True, text=True, check=True
    )
    each = [float(value) for value in re.findall(r"psnr_avg:(\S+)", done.stdout)]
    assert len(each) == frames
    (average,) = re.findall(r"average:(\S+)", done.stderr)
    return each, float(average)


def test_psnr_of_a_video_against_ffmpeg(tmp_path):
    """Its frames differ by very different amounts: the mean of their decibels is another."""
    first, second = (np.stack([frame, frame, frame]) for frame in noisy())
    second[1] = first[1]
    second[2, ::2] = first[2, ::2]
    found = compare_videos(zip(first, second, strict=True))
    each, average = ffmpeg_psnr(first, second, tmp_path)
    assert [frame.psnr for frame in found.frames] == pytest.approx(each, abs=0.005)  # two digits
    assert found.psnr == pytest.approx(average, abs=5e-6)  # six
    assert found.ssim == pytest.approx(sum(frame.ssim for frame in found.frames) / 3)


def test_equal_frames_are_equal():
    first, _ = noisy()
    found = compare_videos([(first, first.copy())])
    assert (found.is_equal, found.psnr, found.ssim) == (True, float("inf"), 1.0)
    other = first.copy()
    other[3, 4, 1] ^= 1
    found = compare_videos([(first, first), (first, other)])
    assert (found.is_equal, found.largest_difference) == (False, 1)
    assert 0.99 < found.ssim < 1.0


def test_frames_without_room_for_a_window():
    small = np.zeros((10, 40, 3), np.uint8)
    with pytest.raises(InputError, match="40x10 are too small"):
        compare_frames(small, small)
