"""Values that change places between positions and channels, by hand and against diffusers' own."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders import autoencoder_kl_wan as theirs

from wan_tpu.vae.rearrange import average_down, patchify, repeat_up, unpatchify

SQUARE = np.array([[0.0, 1.0], [2.0, 3.0]], np.float32)


def video(frames: int, height: int, width: int, channels: int) -> np.ndarray:
    shape = (frames, height, width, channels)
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def as_torch(x: np.ndarray) -> torch.Tensor:
    """`[1, channels, frames, height, width]`."""
    return torch.tensor(np.moveaxis(x, -1, 0)[None])


def as_numpy(x: torch.Tensor) -> np.ndarray:
    return np.moveaxis(x[0].numpy(), 0, -1)


def test_a_patch_goes_column_by_column():
    """Row by row would exchange two pixels of four, which looks like fine noise."""
    square = jnp.asarray(SQUARE).reshape(1, 2, 2, 1)
    patch = patchify(square, 2)
    np.testing.assert_array_equal(patch, np.reshape([0.0, 2.0, 1.0, 3.0], (1, 1, 1, 4)))
    np.testing.assert_array_equal(unpatchify(patch, 2), square)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_patches_are_diffusers(size):
    x = video(2, 6, 12, 3)
    patches = as_numpy(theirs.patchify(as_torch(x), size))
    np.testing.assert_array_equal(patchify(jnp.asarray(x), size), patches)
    np.testing.assert_array_equal(unpatchify(jnp.asarray(patches), size), x)


def test_the_first_frame_averaged_with_nothing_before_it():
    """Twice the channels: of each pair the first has the zeros in front, the second the frame."""
    averaged = average_down(jnp.asarray(SQUARE).reshape(1, 2, 2, 1), 2, frames=2, size=2)
    np.testing.assert_array_equal(averaged, np.reshape([0.0, 1.5], (1, 1, 1, 2)))
    # As many channels: the frame's mean with the zeros.
    averaged = average_down(jnp.asarray(SQUARE).reshape(1, 2, 2, 1), 1, frames=2, size=2)
    np.testing.assert_array_equal(averaged, np.reshape([0.75], (1, 1, 1, 1)))


def test_a_video_averaged_whole_is_its_chunks_averaged():
    """Zeros stand in front of the video, once: behind its last frame would be another video."""
    x = jnp.asarray(video(9, 4, 6, 3))
    whole = average_down(x, 6, frames=2, size=2)
    parts = [average_down(x[i:j], 6, frames=2, size=2) for i, j in ((0, 1), (1, 5), (5, 9))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    np.testing.assert_array_equal(whole[0, ..., ::2], 0)
    assert (np.abs(whole[1:, ..., ::2]) > 0).all()


@pytest.mark.parametrize(
    ("channels", "out_channels", "frames", "size", "length"),
    [
        (4, 4, 1, 2, 1),
        (4, 8, 2, 2, 4),
        (4, 8, 2, 2, 5),
        (4, 32, 2, 2, 4),
        (8, 4, 1, 1, 2),
        (8, 2, 2, 2, 4),
        (6, 4, 1, 2, 2),  # groups that are neither parts of a channel nor whole channels
    ],
)
def test_averages_are_diffusers(channels, out_channels, frames, size, length):
    x = video(length, 4, 6, channels)
    expected = as_numpy(theirs.AvgDown3D(channels, out_channels, frames, size)(as_torch(x)))
    averaged = average_down(jnp.asarray(x), out_channels, frames=frames, size=size)
    assert averaged.shape == expected.shape
    np.testing.assert_allclose(averaged, expected, atol=1e-6, rtol=0)


def test_half_the_channels_become_rows():
    """Two channels for one: the first is the upper row of each square, the second the lower."""
    x = jnp.asarray([5.0, 7.0]).reshape(1, 1, 1, 2)
    square = repeat_up(x, 1, frames=1, size=2)
    np.testing.assert_array_equal(square[0, :, :, 0], [[5, 5], [7, 7]])


@pytest.mark.parametrize(
    ("channels", "out_channels", "frames", "size"),
    [(4, 4, 2, 2), (4, 2, 1, 2), (8, 2, 2, 2), (8, 1, 2, 2), (4, 8, 1, 2), (4, 6, 1, 2)],
)
@pytest.mark.parametrize("first", [False, True])
def test_repeats_are_diffusers(channels, out_channels, frames, size, first):
    x = video(1 if first else 2, 3, 5, channels)
    module = theirs.DupUp3D(channels, out_channels, frames, size)
    expected = as_numpy(module(as_torch(x), first_chunk=first))
    repeated = repeat_up(jnp.asarray(x), out_channels, frames=frames, size=size)
    np.testing.assert_array_equal(repeated[frames - 1 if first else 0 :], expected)
