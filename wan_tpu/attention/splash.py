"""JAX's Pallas splash attention for TPU, with tiles chosen for the length and exact padding.

The kernel wants lengths that are multiples of its tiles, and 75,600 tokens (720p, 81 frames) are a
multiple of none that it takes. So lengths are padded and the padding keys are kept out, by the way
that costs the chip least. Cycles of one tile's body at head_dim 128, read from the compiler's own
schedule (one bundle is one cycle; 2026-11-21, jax 0.10.2, libtpu 0.0.42.1), queries/keys/compute:

| way of keeping padding out | v6e 2048/2048/1024 | v5e 2048/1024/256 |
|---|---|---|
| none: padding attended, wrong | 10,462 | 8,669 |
| segment ids | 11,865 +13.4% | 8,762 +1.1% |
| compare positions (`Padding.COMPARE`) | 11,713 +12.0% | 8,696 +0.3% |
| one more feature (`Padding.FEATURE`) | 10,557 +0.9% | 12,678 +46% |

A mask costs in every tile, not just in the last ones, for the kernel has no branch for full tiles.
The feature instead is 1 in queries and -1e30 in padding keys, so that the product itself puts the
scores out of reach: a 256 wide matrix unit has those rows free at head_dim 128, a 128 wide one pays
a second pass. (v5p is like v5e; tpu7x counts 10,555 with the feature, 12,038 comparing.)

Around the kernel, lengths that are not padded yet cost passes over memory: see
`wan_tpu.attention.sequence_parallel.padded_tokens`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask

from wan_tpu.attention.arrays import Keys, LogSumExp, Queries
from wan_tpu.attention.flash_blocks import LANES
from wan_tpu.attention.residuals import Residuals, name_residuals
from wan_tpu.attention.splash_backward import splash_backward
from wan_tpu.attention.splash_padding import (
    AllKeys,
    FirstKeys,
    Padding,
    only_real,
    pad,
    set_feature,
)
from wan_tpu.attention.splash_tiles import ChipTiles, Tiling, choose_tiling
from wan_tpu.geometry import ceil_to_multiple


def splash_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    *,
    num_keys: int,
    tiles: ChipTiles,
    interpret: bool,
) -> Queries:
    """Attention by JAX's splash kernel.

    Args:
        query: [batch, queries, heads, head_dim].
        key: [batch, keys, heads, head_dim].
        value: [batch, keys, heads, head_dim].
        num_keys: the keys before this position are attended; the others may hold anything.
        tiles: of the chip that will run it.
        interpret: run the kernel in Pallas' interpreter, on any platform.

    Returns:
        [batch, queries, heads, head_dim] in the query's dtype.
    """
    settings = _Settings(num_keys, tiles, interpret)
    return _splash(query, key, value, settings, False)[0]


def splash_with_logsumexp(
    query: Queries,
    key: Keys,
    value: Keys,
    *,
    num_keys: int,
    tiles: ChipTiles,
    interpret: bool,
) -> tuple[Queries, LogSumExp]:
    """`splash_attention`, and the logsumexp of each query's scores.

    Returns:
        [batch, queries, heads, head_dim] in the query's dtype; [batch, heads, queries] float32.
    """
    return _splash(query, key, value, _Settings(num_keys, tiles, interpret), True)


class _Settings(NamedTuple):
    """Arguments of the functions above that are no arrays."""

    num_keys: int
    tiles: ChipTiles
    interpret: bool


def _attend(
    query: Queries, key: Keys, value: Keys, settings: _Settings, with_logsumexp: bool
) -> tuple[Queries, LogSumExp | None]:
    """Around the kernel: attention, and the logsumexp if it is asked for."""
    num_keys, tiles, interpret = settings
    batch, num_queries, heads, head_dim = query.shape
    tiling = choose_tiling(num_queries, num_keys, tiles)
    # The kernel does not scale. Scaling scores would cost a vector operation per (query, key) pair,
    # so an operand is scaled, in float32 and rounded once: the key, which is rewritten anyway when
    # it is padded, and which is short in cross-attention.
    key = (key.astype(jnp.float32) * head_dim**-0.5).astype(key.dtype)
    key, value = (only_real(x, num_keys, tiling.padded_keys) for x in (key, value))
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    # each [batch, heads, length, head_dim]

    padded = tiling.padded_keys > num_keys
    if padded and tiles.padding is Padding.FEATURE:
        features = ceil_to_multiple(head_dim + 1, LANES)
        query = pad(query, tiling.padded_queries, features, fill=1)
        key = set_feature(pad(key, tiling.padded_keys, features), num_keys, head_dim)
    else:
        query = pad(query, tiling.padded_queries, head_dim)
        key = pad(key, tiling.padded_keys, head_dim)
    value = pad(value, tiling.padded_keys, head_dim)

    # Batch items are as good as heads to the kernel; a vmap would add a dimension to its grid.
    query, key, value = (x.reshape(batch * heads, *x.shape[2:]) for x in (query, key, value))
    compared = num_keys if padded and tiles.padding is Padding.COMPARE else None
    result = _kernel(batch * heads, tiling, compared, interpret, with_logsumexp)(query, key, value)
    out, residuals = result if with_logsumexp else (result, None)
    assert isinstance(out, jax.Array)
    out = out.reshape(batch, heads, tiling.padded_queries, head_dim)[:, :, :num_queries]
    out = out.swapaxes(1, 2)  # [batch, queries, heads, head_dim]
    if residuals is None:
        return out, None
    (logsumexp,) = residuals  # [batch * heads, padded queries]
    return out, logsumexp.reshape(batch, heads, -1)[:, :, :num_queries]


def _forward(
    query: Queries, key: Keys, value: Keys, settings: _Settings, with_logsumexp: bool
) -> tuple[tuple[Queries, LogSumExp | None], Residuals]:
    """`_attend`, and what its backward takes."""
    out, logsumexp = _attend(query, key, value, settings, True)
    assert logsumexp is not None
    out, logsumexp = name_residuals(out, logsumexp)
    kept = Residuals(query, key, value, out, logsumexp)
    return (out, logsumexp if with_logsumexp else None), kept


def _backward(
    settings: _Settings,
    _with_logsumexp: bool,
    residuals: Residuals,
    gradients: tuple[Queries, LogSumExp | None],
) -> tuple[Queries, Keys, Keys]:
    """The gradient of `_attend`."""
    d_out, d_logsumexp = gradients
    return splash_backward(
        *residuals, d_out,
        num_keys=settings.num_keys, tiles=settings.tiles.backward, interpret=settings.interpret,
        d_logsumexp=d_logsumexp,
    )  # fmt: skip


_splash = jax.custom_vjp(_attend, nondiff_argnums=(3, 4))
_splash.defvjp(_forward, _backward)


def _kernel(
    num_heads: int,
    tiling: Tiling,
    compared: int | None,
    interpret: bool,
    save_residuals: bool = False,
) -> splash_kernel.SplashAttentionKernel:
    """The kernel for [num_heads, padded length, features].

    Args:
        num_heads: batch * heads.
        tiling: tiles and padded lengths.
        compared: attend to keys before this position by comparing positions; to all when None.
        interpret: run it in Pallas' interpreter.
        save_residuals: give the logsumexp, too.
    """
    shape = (tiling.padded_queries, tiling.padded_keys)
    mask = AllKeys(shape) if compared is None else FirstKeys(shape, compared)
    return splash_kernel.make_splash_mha(
        mask=splash_mask.MultiHeadMask([mask] * num_heads),
        block_sizes=splash_kernel.BlockSizes(
            block_q=tiling.query_block,
            block_kv=tiling.key_tile.block,
            block_kv_compute=tiling.key_tile.compute,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
        save_residuals=save_residuals,
    )
