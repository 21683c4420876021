"""What moves values between positions and channels: patches of pixels, shortcuts around levels.

Nothing here is learned. Arrays are `[frames, height, width, channels]`, per device: neighbours that
change places with channels always lie on one device.
"""

import itertools
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from wan_tpu.vae.convolution import Picture

Rearranged = Float[Array, "frames_out height_out width_out out_channels"]


def patchify(pixels: Picture, size: int) -> Rearranged:
    """Squares of pixels to channels; diffusers' `patchify`.

    Args:
        pixels: `[frames, height, width, channels]`.
        size: of a square.

    Returns:
        `[frames, height / size, width / size, channels * size * size]`. A channel's pixels lie
        beside each other, column by column: [[0, 1], [2, 3]] becomes 0, 2, 1, 3.
    """
    frames, height, width, channels = pixels.shape
    x = pixels.reshape(frames, height // size, size, width // size, size, channels)
    x = x.transpose(0, 1, 3, 5, 4, 2)  # [frames, height, width, channels, column, row]
    return x.reshape(frames, height // size, width // size, channels * size**2)


def unpatchify(patches: Picture, size: int) -> Rearranged:
    """The inverse of `patchify`."""
    frames, height, width, channels = patches.shape
    x = patches.reshape(frames, height, width, channels // size**2, size, size)
    x = x.transpose(0, 1, 5, 2, 4, 3)  # [frames, height, row, width, column, channels]
    return x.reshape(frames, height * size, width * size, channels // size**2)


def average_down(x: Picture, out_channels: int, *, frames: int, size: int) -> Rearranged:
    """The shortcut of an encoder's level; diffusers' `AvgDown3D`.

    A position's values, channel by channel and within a channel by frame, row and column, are cut
    into `out_channels` groups, whose means are the result.

    Args:
        x: `[frames, height, width, channels]`; zeros are put in front to fill the frames up to a
            multiple, which is right for a video's first frame and for whole chunks after it.
        out_channels: of the result.
        frames: that become one.
        size: rows and columns that become one.

    Returns:
        `[ceil(frames / frames), height / size, width / size, out_channels]`.
    """
    dtype = x.dtype
    x = jnp.pad(x.astype(jnp.float32), [(-len(x) % frames, 0), (0, 0), (0, 0), (0, 0)])
    places = itertools.product(range(frames), range(size), range(size))
    parts = [x[frame::frames, row::size, column::size] for frame, row, column in places]
    group = x.shape[-1] * len(parts) // out_channels
    # First what a group has of one channel, then the channels of a group.
    together = math.gcd(group, len(parts))
    sums = [sum(parts[i : i + together]) for i in range(0, len(parts), together)]
    x = jnp.stack(sums, axis=-1)  # [frames out, height out, width out, channels, sums]
    x = x.reshape(*x.shape[:3], out_channels, group // together)
    return (x.sum(-1) / group).astype(dtype)


def repeat_up(x: Picture, out_channels: int, *, frames: int, size: int) -> Rearranged:
    """The shortcut of a decoder's level; diffusers' `DupUp3D`.

    Each channel is repeated, and the result read as `out_channels` channels and within a channel
    by frame, row and column.

    Args:
        x: `[frames, height, width, channels]`.
        out_channels: of the result.
        frames: that one becomes.
        size: rows and columns that one becomes.

    Returns:
        `[frames x frames, height x size, width x size, out_channels]`.
    """
    length, height, width, channels = x.shape
    x = jnp.repeat(x, out_channels * frames * size**2 // channels, axis=-1)
    x = x.reshape(length, height, width, out_channels, frames, size, size)
    # [length, frames, height, rows, width, columns, channels]
    x = x.transpose(0, 4, 1, 5, 2, 6, 3)
    return x.reshape(length * frames, height * size, width * size, out_channels)
