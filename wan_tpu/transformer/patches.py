"""Latents to tokens and back, and the patch embedding's kernel in the order of a token's values."""

from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wan_tpu.geometry import Geometry

AnyArray = TypeVar("AnyArray", Array, np.ndarray)


def patchify(
    latents: Float[AnyArray, "batch channels frames height width"], patch: tuple[int, int, int]
) -> Float[AnyArray, "batch tokens token_channels"]:
    """Latents to tokens, of a NumPy or a JAX array alike.

    Args:
        latents: `[batch, channels, frames, height, width]`.
        patch: latents per token along (frames, height, width).

    Returns:
        `[batch, tokens, patch frames * rows * columns * channels]`.
    """
    batch, channels, *sizes = latents.shape
    frames, rows, columns = (size // p for size, p in zip(sizes, patch, strict=True))
    x = latents.reshape(batch, channels, frames, patch[0], rows, patch[1], columns, patch[2])
    x = x.transpose(0, 2, 4, 6, 3, 5, 7, 1)  # [batch, f, r, c, pf, pr, pc, channels]
    return x.reshape(batch, frames * rows * columns, -1)


def unpatchify(
    tokens: Float[Array, "batch tokens token_channels"], geometry: Geometry
) -> Float[Array, "batch frames height width channels"]:
    """Tokens to latents, channels last, padding tokens dropped.

    Args:
        tokens: `[batch, padded tokens, token channels]`.
        geometry: sizes of the video.

    Returns:
        `[batch, latent frames, latent height, latent width, channels]`.
    """
    frames, rows, columns = geometry.grid
    patch = geometry.compression.patch
    x = tokens[:, : geometry.num_tokens].reshape(tokens.shape[0], frames, rows, columns, *patch, -1)
    x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)  # [batch, f, pf, r, pr, c, pc, channels]
    return x.reshape(
        tokens.shape[0], geometry.latent_frames, geometry.latent_height, geometry.latent_width, -1
    )


def rows_of_tokens(
    kernel: Float[Array, "dim channels patch_frames patch_rows patch_columns"],
) -> Float[Array, "dim token_channels"]:
    """A part of the patch kernel as a product with tokens of its channels takes it.

    A token's values are ordered (patch frames, rows, columns, channels), so channels are cut off
    before this, never after.
    """
    return jnp.moveaxis(kernel, 1, -1).reshape(kernel.shape[0], -1)
