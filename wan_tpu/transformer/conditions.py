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
        embedded: `[samples, padded tokens, dim]`, from `Denoiser.embed_condition`.
    """

    embedded: Float[Array, "samples tokens dim"]


class FirstFrameCondition(NamedTuple):
    """A picture in the place of the first latent frame, clean: its tokens are at timestep 0.

    Attributes:
        tokens: `[samples, padded tokens, token channels]`; those of the first frame are the
            picture's, the others are not looked at.
        given: which of the samples have a picture; None for all of them.
    """

    tokens: Float32[Array, "samples tokens token_channels"]
    given: Bool[Array, " samples"] | None = None


Condition = ChannelCondition | FirstFrameCondition


def is_first_frame(tokens: int, geometry: Geometry) -> Bool[Array, " {tokens}"]:
    """Which of the tokens, padding included, are of the first latent frame."""
    return jax.lax.iota(jnp.int32, tokens) < first_frame_tokens(geometry)


def first_frame_tokens(geometry: Geometry) -> int:
    """How many tokens are of the first latent frame: the first ones."""
    assert geometry.compression.patch[0] == 1, "a token of the first frame holds others, too"
    _, rows, columns = geometry.grid
    return rows * columns


def row_of_each_token(
    rows: Float[Array, "samples timesteps dim"], tokens: int, geometry: Geometry
) -> Float[Array, "samples tokens_or_1 dim"]:
    """What each token is told of its timestep.

    To be called where it is used: for all tokens it is some ten thousand times as large as the
    rows, and choosing costs nothing beside reading that.

    Args:
        rows: `[samples, 1, dim]`, the same for all tokens of a sample; or `[samples, 2, dim]`, of
            the first latent frame's tokens and of the others.
        tokens: of the sequence, padding included.
        geometry: sizes of the video.

    Returns:
        `[samples, 1, dim]` of one row; `[samples, tokens, dim]` of two.
    """
    if rows.shape[1] == 1:
        return rows
    is_first = is_first_frame(tokens, geometry)[:, None]
    return jnp.where(is_first, rows[:, :1], rows[:, 1:])


def with_first_frame(
    latents: Float32[Array, "samples tokens channels"],
    timesteps: Float32[Array, "samples 1"],
    condition: FirstFrameCondition,
    geometry: Geometry,
) -> tuple[Float32[Array, "samples tokens channels"], Float32[Array, "samples 2"]]:
    """The pictures in the place of the first latent frame, which is at timestep 0 there."""
    is_first = is_first_frame(latents.shape[1], geometry)[:, None]  # [tokens, 1]
    first = jnp.zeros_like(timesteps)
    if condition.given is not None:
        is_first = is_first & condition.given[:, None, None]
        first = jnp.where(condition.given[:, None], first, timesteps)
    latents = jnp.where(is_first, condition.tokens, latents)
    return latents, jnp.concatenate([first, timesteps], axis=1)
