"""The gradient of splash attention, by JAX's backward kernel from the forward's logsumexp.

The fused kernel makes the weights of a tile once and multiplies five times; its two separate ones,
for keys and for queries, make them twice and multiply seven times. In bundles per 1,000 (query,
key) pairs at head_dim 128, bfloat16, read from the compiler's own schedule (2026-11-26, jax 0.10.2,
libtpu 0.0.42.1):

| queries/keys/compute | fused | for keys + for queries |
|---|---|---|
| v6e 2048/2048/512 | 5,638 | 4,409 + 3,367 (1024/2048) |
| v6e 1024/1024/512 | 6,126 | 4,860 + 3,672 |
| v5e 1024/1024/512 | 9,872 | 8,097 + 5,975 |
| v5p 1024/1024/512 | 10,173 | |

The fused kernel writes the gradient of the queries once for each block of keys, to be summed: 3.6
GB for five heads of 75,600 tokens. So the blocks of keys are walked in parts whose share is at most
`PARTIAL_BYTES`, and the parts are summed in float32.

Padding keys are kept out by comparing positions on every chip, in the last part alone: on a v6e it
takes 5,407 without a mask, 5,638 comparing, 5,644 with one more feature; on a v5e 9,722, 9,872 and
15,864.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask_info as splash_mask_info,
)
from jaxtyping import Array, Float, Float32, Int32

from wan_tpu.attention.arrays import Keys, LogSumExp, Queries
from wan_tpu.attention.residuals import of_queries
from wan_tpu.attention.splash_padding import AllKeys, FirstKeys, only_real, pad
from wan_tpu.attention.splash_tiles import Tiles, Tiling, choose_tiling

Rows = Float[Array, "batch_heads _ head_dim"]
"""Tokens of either kind, padded. Batch items are as good as heads to the kernel."""

PARTIAL_BYTES = 512 << 20
"""Most bytes of the queries' gradient that the kernel may write to be summed afterwards."""


def splash_backward(
    query: Queries,
    key: Keys,
    value: Keys,
    out: Queries,
    logsumexp: LogSumExp,
    d_out: Queries,
    *,
    num_keys: int,
    tiles: Tiles,
    interpret: bool,
    d_logsumexp: LogSumExp | None = None,
) -> tuple[Queries, Keys, Keys]:
    """The gradient of attention over these keys, which may be some of those attended.

    Args:
        query: [batch, queries, heads, head_dim].
        key: [batch, keys, heads, head_dim].
        value: [batch, keys, heads, head_dim].
        out: attention over all keys, like `query`.
        logsumexp: of the scores of all keys, [batch, heads, queries].
        d_out: gradient of `out`.
        num_keys: the keys before this position were attended; the others may hold anything.
        tiles: of the chip that will run it.
        interpret: run the kernel in Pallas' interpreter, on any platform.
        d_logsumexp: gradient of `logsumexp`; zero when None.

    Returns:
        Gradients of query, key and value, like them: from these keys. Of padding keys zero.
    """
    batch, num_queries, heads, head_dim = query.shape
    tiling = choose_tiling(num_queries, num_keys, tiles)
    scale = head_dim**-0.5
    given = of_queries(query, out, logsumexp, d_out, d_logsumexp)
    # Scaled and rounded as the forward does, or the weights are not those that it summed.
    key_scaled = (key.astype(jnp.float32) * scale).astype(key.dtype)
    keys = [
        _rows(only_real(x, num_keys, tiling.padded_keys), tiling.padded_keys)
        for x in (key_scaled, value)
    ]
    # Padding queries are zeros and so is their gradient: finite weights, times zero.
    queries = (
        _rows(given.query, tiling.padded_queries),
        _per_query(given.logsumexp, tiling.padded_queries),
        _rows(d_out.astype(query.dtype), tiling.padded_queries),
        _per_query(given.mean, tiling.padded_queries),
    )
    d_query, d_key, d_value = _in_parts(queries, keys, tiling, num_keys, interpret)

    def tokens(x: Rows, like: Queries) -> Float[Array, "batch tokens heads head_dim"]:
        """[batch * heads, padded length, head_dim] -> [batch, real length, heads, head_dim]."""
        real = min(like.shape[1], num_keys) if like is not query else num_queries
        x = x.reshape(batch, heads, -1, head_dim)[:, :, :real].swapaxes(1, 2).astype(like.dtype)
        return jnp.pad(x, ((0, 0), (0, like.shape[1] - real), (0, 0), (0, 0)))

    d_key = d_key.astype(jnp.float32) * scale
    return tokens(d_query, query), tokens(d_key, key), tokens(d_value, value)


def _rows(x: Float[Array, "batch tokens heads head_dim"], length: int) -> Rows:
    """[batch, tokens, heads, head_dim] -> [batch * heads, length, head_dim], zeros at the end."""
    x = pad(x.swapaxes(1, 2), length, x.shape[3])
    return x.reshape(-1, *x.shape[2:])


def _per_query(x: LogSumExp, length: int) -> Float32[Array, "batch_heads _"]:
    """[batch, heads, queries] -> [batch * heads, length], zeros at the end."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, length - x.shape[2]))).reshape(-1, length)


def _in_parts(
    queries: tuple[Array, ...],
    keys: list[Rows],
    tiling: Tiling,
    num_keys: int,
    interpret: bool,
) -> tuple[Rows, Rows, Rows]:
    """Gradients of padded rows of queries, keys and values; see `PARTIAL_BYTES`."""
    query, block = queries[0], tiling.key_tile.block
    blocks = tiling.padded_keys // block
    share = query.size * query.dtype.itemsize
    part = min(max(PARTIAL_BYTES // share, 1), blocks) * block
    whole = (blocks * block - 1) // part  # parts before the last, which may be shorter
    done = whole * part
    compared = num_keys - done if tiling.padded_keys > num_keys else None
    last = _kernel(queries, [x[:, done:] for x in keys], tiling, compared, interpret)
    if whole == 0:
        return last

    def step(d_query: Array, index: Int32[Array, ""]) -> tuple[Array, tuple[Rows, Rows]]:
        some = [jax.lax.dynamic_slice_in_dim(x, index * part, part, 1) for x in keys]
        further, d_key, d_value = _kernel(queries, some, tiling, None, interpret)
        return d_query + further, (d_key, d_value)

    d_query, d_keys = jax.lax.scan(step, last[0].astype(jnp.float32), jnp.arange(whole))
    d_key, d_value = (
        jnp.concatenate([jnp.moveaxis(x, 0, 1).reshape(len(query), done, -1), end], axis=1)
        for x, end in zip(d_keys, last[1:], strict=True)
    )
    return d_query, d_key, d_value


def _kernel(
    queries: tuple[Array, ...],
    keys: list[Rows],
    tiling: Tiling,
    compared: int | None,
    interpret: bool,
) -> tuple[Rows, Rows, Rows]:
    """The kernel on whole tiles.

    Args:
        queries: rows, their logsumexp, the gradient of their result, the mean gradient of their
            weights.
        keys: rows of scaled keys and of values.
        tiling: sizes of the tiles.
        compared: only keys before this position were attended; all when None.
        interpret: run it in Pallas' interpreter.

    Returns:
        Gradients of the queries, of the scaled keys and of the values.
    """
    query, logsumexp, d_out, mean = queries
    key, value = keys
    shape = (query.shape[1], key.shape[1])
    mask = AllKeys(shape) if compared is None else FirstKeys(shape, compared)
    info, mask_function = splash_mask_info.process_mask_dkv(
        splash_mask.MultiHeadMask([mask] * len(query)),
        (tiling.query_block, tiling.key_tile.block),
        head_shards=1,
        q_seq_shards=1,
        shrink_grid=False,  # each tile's share of the queries' gradient must be written
    )
    layout = splash_kernel.QKVLayout.HEAD_DIM_MINOR
    d_query, d_key, d_value = splash_kernel._splash_attention_bwd_dkv(
        query, key, value, None, None, logsumexp, d_out, mean,
        bq=tiling.query_block,
        bkv=tiling.key_tile.block,
        bkv_compute=tiling.key_tile.compute,
        is_mqa=False,
        mask_info=jax.tree.map(jnp.asarray, info),
        mask_value=splash_kernel.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        use_fused_bwd_kernel=True,
        q_layout=layout,
        k_layout=layout,
        v_layout=layout,
        mask_function=mask_function,
        interpret=interpret,
    )  # fmt: skip
    assert d_query is not None  # as it is when two kernels do this
    return d_query, d_key, d_value
