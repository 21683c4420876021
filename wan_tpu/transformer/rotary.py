"""Rotary position embedding over (frames, rows, columns), in the half-split form.

diffusers' Wan rotates neighbouring channels (2p, 2p + 1). Strided reads and writes of single
channels become scatters and copies on a TPU, so the query and key projections are stored with each
head's even channels first and its odd channels after (`half_split_rows`): the same pairs then lie
half a head apart and one rotation is `x * cos + roll(x, head_dim / 2) * sin`. Scores do not change,
because queries and keys are permuted alike.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Float64, Int

THETA = 10_000.0


def half_split_rows(num_heads: int, head_dim: int) -> Int[np.ndarray, " features"]:
    """The checkpoint's row for each row of a query or key projection, `[num_heads * head_dim]`."""
    within_head = np.concatenate([np.arange(0, head_dim, 2), np.arange(1, head_dim, 2)])
    return (np.arange(num_heads)[:, None] * head_dim + within_head).reshape(-1)


def axis_angles(grid: tuple[int, int, int], head_dim: int) -> list[Float64[np.ndarray, "_ _"]]:
    """Angles along each axis, `[length, pairs of that axis]`, float64 radians.

    Wan gives rows and columns `2 * (head_dim // 6)` channels each and frames the rest (diffusers'
    `WanRotaryPosEmbed`).
    """
    space = 2 * (head_dim // 6)
    angles = []
    for length, channels in zip(grid, (head_dim - 2 * space, space, space), strict=True):
        frequencies = 1.0 / THETA ** (np.arange(0, channels, 2, dtype=np.float64) / channels)
        angles.append(np.outer(np.arange(length), frequencies))
    return angles


def rotary_tables(
    grid: tuple[int, int, int], head_dim: int, padded_tokens: int
) -> tuple[
    Float32[Array, "{padded_tokens} {head_dim}"], Float32[Array, "{padded_tokens} {head_dim}"]
]:
    """Cosines and signed sines for every token, each `[padded_tokens, head_dim]`, float32.

    Only the small per-axis tables are constants of the program; the device spreads them over the
    grid. Padding tokens get position 0 (they are never attended).
    """

    def spread(
        tables: list[Float64[np.ndarray, "_ _"]],
    ) -> Float32[Array, "tokens half_head_dim"]:
        shapes = [(-1, 1, 1), (1, -1, 1), (1, 1, -1)]
        parts = [
            jnp.broadcast_to(
                jnp.asarray(table, jnp.float32).reshape(*shape, table.shape[1]),
                (*grid, table.shape[1]),
            )
            for table, shape in zip(tables, shapes, strict=True)
        ]
        whole = jnp.concatenate(parts, axis=-1)  # [frames, rows, columns, head_dim / 2]
        whole = whole.reshape(-1, whole.shape[-1])  # [tokens, head_dim / 2]
        return jnp.pad(whole, ((0, padded_tokens - whole.shape[0]), (0, 0)))

    angles = axis_angles(grid, head_dim)
    cos = spread([np.cos(a) for a in angles])
    sin = spread([np.sin(a) for a in angles])
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def rotate(
    x: Float[Array, "batch tokens heads head_dim"],
    cos: Float32[Array, "tokens head_dim"],
    sin: Float32[Array, "tokens head_dim"],
) -> Float[Array, "batch tokens heads head_dim"]:
    """Rotates each head.

    The halves change places by a product with a permutation, which is exact: every sum has one
    term. A roll by half a register makes XLA lay the array out anew for a TPU, tokens innermost
    and float32: the 14B step at 720p (v6e-8, dp2-sp4) then needs 3.27 GiB of temporaries, not 2.37.

    Args:
        x: `[batch, tokens, heads, head_dim]`, any float dtype, in half-split order.
        cos: `[tokens, head_dim]`, float32.
        sin: `[tokens, head_dim]`, float32, the first half negated.

    Returns:
        Like `x`; computed in float32, rounded once.
    """
    head_dim = x.shape[-1]
    swap = jnp.asarray(np.roll(np.eye(head_dim), head_dim // 2, axis=1), x.dtype)
    swapped = jnp.einsum("bthd,de->bthe", x, swap).astype(jnp.float32)
    rotated = x.astype(jnp.float32) * cos[None, :, None, :] + swapped * sin[None, :, None, :]
    return rotated.astype(x.dtype)


def split_heads(
    x: Float[Array, "batch tokens channels"], head_dim: int
) -> Float[Array, "batch tokens heads {head_dim}"]:
    """`[batch, tokens, heads * head_dim]` -> `[batch, tokens, heads, head_dim]`."""
    return x.reshape(*x.shape[:2], -1, head_dim)
