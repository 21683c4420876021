"""What pictures add to the denoiser's input: constant over the steps of a request.

Knows how it enters a step, not where it comes from: pictures are encoded elsewhere.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from wan_tpu.geometry import Geometry


class ChannelCondition(NamedTuple):
    """Further input channels of every token, already multiplied by their weights.

    Attributes:
        embedded: `[1, padded tokens, dim]`, from `Denoiser.embed_condition`.
    """

    embedded: Float[Array, "1 tokens dim"]


class FirstFrameCondition(NamedTuple):
    """A picture in the place of the first latent frame, clean: its tokens are at timestep 0.

    Attributes:
        tokens: `[1, padded tokens, token channels]`; those of the first frame are the picture's,
            the others are not looked at.
    """

    tokens: Float32[Array, "1 tokens token_channels"]


Condition = ChannelCondition | FirstFrameCondition


def is_first_frame(tokens: int, geometry: Geometry) -> Bool[Array, " {tokens}"]:
    """Which of the tokens, padding included, are of the first latent frame."""
    assert geometry.compression.patch[0] == 1, "a token of the first frame holds others, too"
    _, rows, columns = geometry.grid
    return jax.lax.iota(jnp.int32, tokens) < rows * columns


def row_of_each_token(
    rows: Float[Array, "timesteps ..."], tokens: int, geometry: Geometry
) -> Float[Array, "1 ..."]:
    """What each token is told of its timestep.

    To be called where it is used: for all tokens it is some ten thousand times as large as the
    rows, and choosing costs nothing beside reading that.

    Args:
        rows: `[1, ...]`, the same for all tokens; or `[2, ...]`, of the first latent frame's tokens
            and of the others.
        tokens: of the sequence, padding included.
        geometry: sizes of the video.

    Returns:
        `[1, ...]` of one row; `[1, tokens, ...]` of two.
    """
    if rows.shape[0] == 1:
        return rows
    first, other = rows
    is_first = is_first_frame(tokens, geometry).reshape(1, tokens, *[1] * first.ndim)
    return jnp.where(is_first, first, other)
