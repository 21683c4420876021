"""The autoencoder's convolution, written twice: as the TPU's compiler wants it, and as others do.

Both take frames that are already padded, in time and in space, and give the same numbers up to
rounding. What each costs is in docs/decisions/0002-own-flax-vae.md.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Picture = Float[Array, "frames height width in_channels"]
Kernel = Float[Array, "kernel_frames columns rows in_channels out_channels"]
Convolved = Float[Array, "frames_out height_out width_out out_channels"]

Around = tuple[int, int]
"""Rows of zeros above and below."""

CHANNELS = -1

FOLDED_BYTES = 24 * 2**20
"""The most memory that folded rows may take at once, per device: what stays in the VMEM of every
TPU, 64 MiB or more, beside the strip they are made of. In HBM they would be written and read for
each convolution and take more room than all else of a chunk
(benchmarks/results/2026-11-27-decoder-memory.md)."""


def folded(x: Picture, kernel: Kernel, frame_stride: int, stride: int, around: Around) -> Convolved:
    """For TPUs: rows are folded into channels and otherwise form the batch.

    The matrix unit sums over 256 channels at once, of which 96 alone would use a third, and it
    wants a long batch: with few frames XLA would cut the picture into strips and copy them around
    every convolution. Folding copies the picture, three times its size, so a large one is taken
    in strips of columns, which lie together in the layout that XLA gives such pictures.

    Args:
        x: `[frames, height, width, in_channels]`, padded but for `around`.
        kernel: `[kernel frames, columns, rows, in_channels, out_channels]`.
        frame_stride: of the frames.
        stride: of rows and columns.
        around: rows of the padding that `x` does not have yet: on a strip they cost nothing.

    Returns:
        `[frames out, height out, width out, out_channels]`.
    """
    frames, columns, rows, in_channels, out_channels = kernel.shape
    height = (x.shape[1] + sum(around) - rows) // stride + 1
    width = (x.shape[2] - columns) // stride + 1
    folded_bytes = len(x) * height * x.shape[2] * rows * in_channels * x.dtype.itemsize
    if rows == 1 or folded_bytes <= FOLDED_BYTES:
        return _folded_at_once(x, kernel, frame_stride, stride, around)
    needed = -(-folded_bytes // FOLDED_BYTES)
    # Where a number that is not much larger divides the width, no column is computed twice.
    num_strips = min(
        range(min(needed, width), min(2 * needed, width) + 1), key=lambda n: n * -(-width // n)
    )
    strip = -(-width // num_strips)
    # The last strip begins early enough to be whole.
    starts = np.minimum(np.arange(num_strips) * strip, width - strip)

    def convolve_strip(out: Picture, start: Int[Array, ""]) -> tuple[Picture, None]:
        taken = (strip - 1) * stride + columns
        part = jax.lax.dynamic_slice_in_dim(x, start * stride, taken, axis=2)
        part = _folded_at_once(part, kernel, frame_stride, stride, around)
        return jax.lax.dynamic_update_slice_in_dim(out, part, start, axis=2), None

    num_frames = (len(x) - frames) // frame_stride + 1
    out = jax.lax.empty((num_frames, height, width, out_channels), x.dtype)
    return jax.lax.scan(convolve_strip, out, jnp.asarray(starts))[0]


def _folded_at_once(
    x: Picture, kernel: Kernel, frame_stride: int, stride: int, around: Around
) -> Convolved:
    """`folded` of all columns together."""
    frames, columns, rows, _, out_channels = kernel.shape
    if rows > 1:
        x = _with_rows(x, around)
        height = x.shape[1] - rows + 1
        x = jnp.concatenate([x[:, row : row + height : stride] for row in range(rows)], CHANNELS)
        # Without the barrier XLA takes the folding apart into one convolution per row again.
        x = jax.lax.optimization_barrier(x)  # [frames, height out, width, rows * in_channels]
    return jax.lax.conv_general_dilated(
        x,
        kernel.reshape(frames, columns, -1, out_channels),
        window_strides=(frame_stride, stride),
        padding="VALID",
        dimension_numbers=("HNWC", "HWIO", "HNWC"),
        precision=_precision(x),
    )


def by_frame(
    x: Picture, kernel: Kernel, frame_stride: int, stride: int, around: Around
) -> Convolved:
    """For CPUs and GPUs: a sum of convolutions of pictures, which their libraries do well.

    Arguments and result as those of `folded`.
    """
    x = _with_rows(x, around)
    frames = len(x) - len(kernel) + 1
    parts = [
        jax.lax.conv_general_dilated(
            x[frame : frame + frames : frame_stride],
            jnp.swapaxes(tap, 0, 1),  # [rows, columns, in_channels, out_channels]
            window_strides=(stride, stride),
            padding="VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=_precision(x),
        )
        for frame, tap in enumerate(kernel)
    ]
    return functools.reduce(jnp.add, parts)


CONVOLUTIONS: dict[str, Callable[[Array, Array, int, int, Around], Array]] = {
    "folded": folded,
    "by_frame": by_frame,
}
"""By name."""


def convolution_for(platform: str) -> str:
    """The name of the one to use on a platform."""
    return "folded" if platform == "tpu" else "by_frame"


def _with_rows(
    x: Picture, around: Around
) -> Float[Array, "frames height+{sum(around)} width in_channels"]:
    return jnp.pad(x, [(0, 0), around, (0, 0), (0, 0)])


def _precision(x: Float[Array, "..."]) -> jax.lax.Precision | None:
    """float32 means float32, on TPUs too, whose default is bfloat16 passes."""
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
