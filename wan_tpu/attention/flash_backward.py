"""Flash attention's backward kernel for TPU: five products a pair, nothing of the forward again.

With weights `P = exp(scores - logsumexp)` and `delta = sum(out * d_out)` of a query (Dao et al.
2022, arXiv:2205.14135, appendix B.2):

    d_value = P^T d_out        d_scores = P * (d_out value^T - delta)
    d_query = d_scores key     d_key = d_scores^T query

One kernel walks blocks of keys and, for each, all blocks of queries: scores and weights are made
once, where a kernel for queries and one for keys make them twice (seven products). Gradients of
keys and values stay in VMEM until their block is done. Those of the queries are added up in float32
in the chip's memory, block by block, while the next block is worked on; one head's worth of memory
does for all heads, since they come one after the other.

A matrix unit 256 wide has half of its rows idle in a product over head_dim 128. So both
subtractions ride in the products, as features of the queries against ones in the keys: logsumexp
and delta in three numbers of the inputs' dtype each (24 bits in bfloat16). So does the mask:
padding keys have a feature that makes their score -1e30, hence no weight and no gradient. The loops
need no mask at all.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from wan_tpu.attention.arrays import KeyChunks, LogSumExp, QueryChunks
from wan_tpu.attention.flash_blocks import LANES, Blocks
from wan_tpu.geometry import ceil_to_multiple

KERNEL_NAME = "flash_attention_backward"
"""Programs call it so, with the head's features, as the forward's."""

VMEM_LIMIT_BYTES = 60 << 20
"""What the kernel may take of a core's memory: 128 MiB on a v6e, 64 MiB on a v7x."""

STRIP, SHORT_TILE_STRIP = 512, 1024
"""Queries of one product; the latter with `LAST_COMPUTE` keys."""

MAX_QUERIES, MAX_KEYS, COMPUTE, LAST_COMPUTE = 4736, 5120, 1024, 256
"""Largest blocks, and keys of one product, of 16-bit numbers; half as many of 32-bit ones."""

_EXCLUDED = -1e30
"""Score of a key that is none, or of a query that is none: the weight is 0."""

_FEATURES = 8
"""Rows of what a query brings beside its head: three digits, 1 for the mask, zeros."""


def choose_backward_blocks(query_chunk: int, key_chunk: int, itemsize: int) -> Blocks:
    """Blocks for given lengths of a chunk and bytes of a number.

    The queries' are even, for all of a block is worked on; of a block of keys only the real ones.
    """
    max_queries, max_keys = (size * 2 // max(itemsize, 2) for size in (MAX_QUERIES, MAX_KEYS))
    last_compute = min(LAST_COMPUTE, ceil_to_multiple(key_chunk, LANES))
    keys = min(max_keys, ceil_to_multiple(key_chunk, last_compute))
    query_blocks = -(-query_chunk // max_queries)
    return Blocks(
        queries=ceil_to_multiple(-(-query_chunk // query_blocks), LANES),
        keys=keys,
        compute=min(COMPUTE, keys),
        last_compute=last_compute,
    )


def flash_backward(
    query: QueryChunks,
    key: KeyChunks,
    value: KeyChunks,
    out: QueryChunks,
    logsumexp: LogSumExp,
    d_out: QueryChunks,
    *,
    head_dim: int,
    num_keys: int,
    interpret: bool,
    d_logsumexp: LogSumExp | None = None,
    blocks: Blocks | None = None,
) -> tuple[QueryChunks, KeyChunks, KeyChunks]:
    """Gradients of `wan_tpu.attention.flash.flash_with_logsumexp`'s arguments.

    With `out` and `logsumexp` over all keys and `key` and `value` some of them, these are the
    gradients of those keys and values, and these keys' share of the queries'.

    A query whose logsumexp is no finite number takes no part and has no gradient: padding may hold
    anything. Its `d_out` is taken as it is, so a number that is none there is seen in `d_value`.

    Args:
        query: [chunks, batch, query chunk, heads * head_dim].
        key: [chunks, batch, key chunk, heads * head_dim].
        value: like `key`.
        out: the result, like `query`.
        logsumexp: of each query's scores, [batch, heads, queries of all chunks].
        d_out: the gradient of the result, like `query`.
        head_dim: features of a head; on a TPU a multiple of 128.
        num_keys: keys at this position and later never enter, whatever they hold; their gradients
            are zero.
        interpret: run the kernel in Pallas' interpreter, on any platform.
        d_logsumexp: the gradient of the logsumexp, like it; zero when not given.
        blocks: sizes of the tiles; chosen for the lengths when not given.

    Returns:
        Gradients like `query`, `key` and `value`, in their dtypes.
    """
    features = _features(query, out, logsumexp, d_out, d_logsumexp, head_dim)
    query_chunks, batch, query_chunk, channels = query.shape
    key_chunks, _, key_chunk, _ = key.shape
    blocks = blocks or choose_backward_blocks(query_chunk, key_chunk, query.dtype.itemsize)
    query_blocks, key_blocks = pl.cdiv(query_chunk, blocks.queries), pl.cdiv(key_chunk, blocks.keys)
    grid = (batch, channels // head_dim, key_chunks * key_blocks, query_chunks * query_blocks)

    def query_index(b, h, j, i):
        return (i // query_blocks, b, i % query_blocks, h)

    def d_query_index(b, h, j, i):
        # Written in the last round alone: until then the block stays the first, in VMEM.
        return query_index(b, h, j, jnp.where(j == grid[2] - 1, i, 0))

    def key_index(b, h, j, i):
        return (j // key_blocks, b, j % key_blocks, h)

    def feature_index(b, h, j, i):
        return (i // query_blocks, b, h, 0, i % query_blocks)

    def spec(rows, index):
        return pl.BlockSpec((None, None, rows, head_dim), index)

    query_spec, key_spec = spec(blocks.queries, query_index), spec(blocks.keys, key_index)
    feature_spec = pl.BlockSpec((None, None, None, 2 * _FEATURES, blocks.queries), feature_index)
    kept = min(2, grid[3])
    blocks_kept = grid[3] if grid[2] > 1 else 1  # with one block of keys nothing is added up
    sums = jax.ShapeDtypeStruct((blocks_kept, head_dim, blocks.queries), jnp.float32)
    like = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (query, key, value)]
    d_query, d_key, d_value, _ = pl.pallas_call(
        functools.partial(
            _kernel,
            blocks=blocks,
            num_keys=num_keys,
            chunks=(query_chunk, key_chunk),
            blocks_of_chunk=(query_blocks, key_blocks),
        ),
        grid=grid,
        in_specs=[query_spec, key_spec, key_spec, query_spec, feature_spec],
        out_specs=[
            spec(blocks.queries, d_query_index),
            key_spec,
            key_spec,
            pl.BlockSpec(memory_space=pl.ANY),
        ],
        out_shape=[*like, sums],
        scratch_shapes=_scratch(blocks, head_dim, query.dtype, kept),
        compiler_params=pltpu.CompilerParams(
            # One after the other: all heads use one array of sums.
            dimension_semantics=("arbitrary",) * 4,
            vmem_limit_bytes=VMEM_LIMIT_BYTES,
        ),
        interpret=interpret,
        name=f"{KERNEL_NAME}_head{head_dim}",
    )(query, key, value, d_out, features)
    return d_query, d_key, d_value


def _scratch(blocks: Blocks, head_dim: int, dtype: jnp.dtype, kept: int) -> dict[str, Any]:
    """What the kernel holds beside its blocks; its arguments' names say what they are."""
    wide = head_dim + LANES
    numbers = functools.partial(pltpu.VMEM, dtype=dtype)
    sums = functools.partial(pltpu.VMEM, dtype=jnp.float32)
    strip = min(SHORT_TILE_STRIP, blocks.queries)
    return {
        "query_wide": numbers((blocks.queries, wide)),
        "d_out_wide": numbers((blocks.queries, wide)),
        "query_t": numbers((head_dim, blocks.queries)),
        "d_out_t": numbers((head_dim, blocks.queries)),
        "key_t": numbers((wide, blocks.keys)),
        "value_t": numbers((wide, blocks.keys)),
        "d_scores_t": numbers((2, blocks.compute, strip)),
        "d_query_t": sums((head_dim, blocks.queries)),
        "d_key_t": sums((head_dim, blocks.keys)),
        "d_value_t": sums((head_dim, blocks.keys)),
        "kept": sums((kept, head_dim, blocks.queries)),
        "loaded": pltpu.SemaphoreType.DMA,
        "stored": pltpu.SemaphoreType.DMA((kept,)),
    }


def _features(
    query: QueryChunks,
    out: QueryChunks,
    logsumexp: LogSumExp,
    d_out: QueryChunks,
    d_logsumexp: LogSumExp | None,
    head_dim: int,
) -> Float[Array, "chunks batch heads features query_chunk"]:
    """What queries bring beside their heads, `_FEATURES` rows for scores, as many for d_out.

    Digits of minus the logsumexp (base 2) and 1; digits of minus delta.
    """
    chunks, batch, chunk, channels = query.shape

    def in_chunks(x: LogSumExp) -> Float32[Array, "chunks batch heads query_chunk"]:
        return jnp.moveaxis(x.reshape(batch, -1, chunks, chunk), 2, 0)

    products = out.astype(jnp.float32) * d_out.astype(jnp.float32)
    delta = products.reshape(chunks, batch, chunk, channels // head_dim, head_dim).sum(-1)
    delta = jnp.swapaxes(delta, 2, 3)  # [chunks, batch, heads, chunk]
    if d_logsumexp is not None:
        delta = delta - in_chunks(d_logsumexp)
    logsumexp = in_chunks(logsumexp)
    takes_part = jnp.isfinite(logsumexp)
    scores = _digits(jnp.where(takes_part, -logsumexp * math.log2(math.e), _EXCLUDED), query.dtype)
    d_scores = _digits(jnp.where(takes_part, -delta, 0), query.dtype)
    one, zero = jnp.ones_like(scores[0]), jnp.zeros_like(scores[0])
    rows = [*scores, one, *[zero] * (_FEATURES - 4), *d_scores, *[zero] * (_FEATURES - 3)]
    return jnp.stack(rows, axis=3)


def _digits(x: Float32[Array, "*shape"], dtype: jnp.dtype) -> list[Float[Array, "*shape"]]:
    """Three numbers of `dtype` whose sum is x, to float32's last bits."""
    info = jnp.finfo(dtype)
    digits = []
    for _ in range(3):
        # Not a cast there and back, which XLA may leave out.
        digit = jax.lax.reduce_precision(x, info.nexp, info.nmant)
        digits.append(digit.astype(dtype))
        x = x - digit
    return digits


def _kernel(
    query_ref, key_ref, value_ref, d_out_ref, features_ref,
    d_query_ref, d_key_ref, d_value_ref, sums_ref, *,
    query_wide, d_out_wide, query_t, d_out_t, key_t, value_t,
    d_scores_t, d_query_t, d_key_t, d_value_t, kept, loaded, stored,
    blocks: Blocks, num_keys: int,
    chunks: tuple[int, int], blocks_of_chunk: tuple[int, int],
):  # fmt: skip
    """One block of keys against one block of queries.

    Args:
        query_ref: [queries, head_dim]; d_out_ref, d_query_ref: likewise.
        key_ref: [keys, head_dim]; value_ref, d_key_ref, d_value_ref: likewise.
        features_ref: [2 * _FEATURES, queries], of queries and of d_out.
        sums_ref: [blocks of queries, head_dim, queries], float32, in the chip's memory: d_query of
            the blocks of keys before.
        query_wide: [queries, head_dim + LANES], scaled, with its features; d_out_wide: likewise.
        query_t: [head_dim, queries], scaled; d_out_t: likewise.
        key_t: [head_dim + LANES, keys], with ones for the features; value_t: likewise.
        d_scores_t: [2, keys, queries] of a product, turned: of this strip and the one before.
        d_query_t: [head_dim, queries], float32: this block of keys' alone.
        d_key_t: [head_dim, keys], float32; d_value_t: likewise.
        kept: [1 or 2, head_dim, queries], float32: blocks of `sums_ref` on their way in and out.
        loaded: tells when a block of `sums_ref` is there; stored: when one is written.
    """
    head_dim = query_ref.shape[-1]
    precision = jax.lax.Precision.HIGHEST if query_ref.dtype == jnp.float32 else None
    dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32, precision=precision)
    j, i = pl.program_id(2), pl.program_id(3)
    key_steps, query_steps = pl.num_programs(2), pl.num_programs(3)
    first_key = j % blocks_of_chunk[1] * blocks.keys
    valid = jnp.minimum(chunks[1], num_keys - j // blocks_of_chunk[1] * chunks[1]) - first_key
    valid = jnp.clip(valid, 0, blocks.keys)
    slot = (j * query_steps + i) % kept.shape[0]

    def rows_of(shape, at):
        return jax.lax.broadcasted_iota(jnp.int32, shape, 0) == at

    def load():
        return pltpu.make_async_copy(sums_ref.at[i], kept.at[slot], loaded)

    def store(index):
        return pltpu.make_async_copy(kept.at[slot], sums_ref.at[index], stored.at[slot])

    def take_keys():
        """Keys and values as the products want them, nothing of the padding in them."""
        real = jax.lax.broadcasted_iota(jnp.int32, (1, blocks.keys), 1) < valid
        row = jax.lax.broadcasted_iota(jnp.int32, (LANES, 1), 0)
        mask = jnp.where((row == 3) & jnp.logical_not(real), _EXCLUDED, 0.0)
        ones = jnp.broadcast_to((row >= _FEATURES) & (row < _FEATURES + 3), mask.shape)
        for wide, ref, features in (
            (key_t, key_ref, jnp.where(row < 3, 1.0, mask)),
            (value_t, value_ref, ones.astype(jnp.float32)),
        ):
            wide[pl.ds(0, head_dim), :] = jnp.where(real, ref[...].T, 0).astype(wide.dtype)
            wide[pl.ds(head_dim, LANES), :] = features.astype(wide.dtype)
        d_key_t[...] = jnp.zeros_like(d_key_t)
        d_value_t[...] = jnp.zeros_like(d_value_t)

    def take_queries():
        """Queries and d_out as the products want them, with features, nothing beyond the chunk."""
        left = chunks[0] - i % blocks_of_chunk[0] * blocks.queries
        inside = jax.lax.broadcasted_iota(jnp.int32, (1, blocks.queries), 1) < left
        features = jnp.where(inside, features_ref[...].astype(jnp.float32), 0)
        outside = jnp.where(inside, features, _EXCLUDED)
        features = jnp.where(rows_of((2 * _FEATURES, 1), 0), outside, features)
        nothing = jnp.zeros((LANES - 2 * _FEATURES, blocks.queries), jnp.float32)
        features = jnp.concatenate([features, nothing], axis=0).T  # [queries, LANES]
        takes_part = features[:, :1] > _EXCLUDED / 2
        inside = jax.lax.broadcasted_iota(jnp.int32, (blocks.queries, 1), 0) < left
        query = query_ref[...].astype(jnp.float32) * (head_dim**-0.5 * math.log2(math.e))
        for x, x_t, wide in (
            (jnp.where(takes_part, query, 0), query_t, query_wide),
            (jnp.where(inside, d_out_ref[...], 0), d_out_t, d_out_wide),
        ):
            x = x.astype(wide.dtype)
            wide[:, pl.ds(0, head_dim)] = x
            wide[:, pl.ds(head_dim, LANES)] = features.astype(wide.dtype)
            x_t[...] = x.T
        d_query_t[...] = jnp.zeros_like(d_query_t)

    def work(first, size):
        """Some keys against all queries of the block."""
        columns = pl.ds(pl.multiple_of(first, LANES), size)
        keys_t = key_t[pl.ds(0, head_dim), columns]
        for index, strip in enumerate(_strips(blocks.queries, size)):
            weights = jnp.exp2(dot(query_wide[strip, :], key_t[:, columns]))
            d_scores = weights * dot(d_out_wide[strip, :], value_t[:, columns])
            weights, d_scores = (x.astype(key_t.dtype) for x in (weights, d_scores))
            d_value_t[:, columns] += dot(d_out_t[:, strip], weights)
            d_key_t[:, columns] += dot(query_t[:, strip], d_scores)
            turned = d_scores_t.at[index % 2, pl.ds(0, size), pl.ds(0, d_scores.shape[0])]
            turned[...] = d_scores.T
            d_query_t[:, strip] += dot(keys_t, turned[...])

    # The block that is about to come in takes the place of one that must be written by then.
    before = j * query_steps + i - kept.shape[0]
    pl.when((before >= 0) & (before < (key_steps - 1) * query_steps))(
        lambda: store(before % query_steps).wait()
    )
    pl.when(j > 0)(lambda: load().start())
    pl.when(i == 0)(take_keys)
    take_queries()
    done = 0
    for size in dict.fromkeys((blocks.compute, blocks.last_compute)):
        count = (
            (valid - done) // size if size > blocks.last_compute else pl.cdiv(valid - done, size)
        )
        pl.loop(0, count)(lambda index, done=done, size=size: work(done + index * size, size))
        done += count * size

    @pl.when(j > 0)
    def _add():
        load().wait()
        d_query_t[...] += kept[slot]

    @pl.when(j < key_steps - 1)
    def _keep():
        kept[slot] = d_query_t[...]
        store(i).start()

    @pl.when(j == key_steps - 1)
    def _finish_queries():
        d_query_ref[...] = (d_query_t[...] * head_dim**-0.5).T.astype(d_query_ref.dtype)

    @pl.when(i == query_steps - 1)
    def _finish_keys():
        # The queries that made it were scaled for base 2.
        d_key_ref[...] = (d_key_t[...] * math.log(2)).T.astype(d_key_ref.dtype)
        d_value_ref[...] = d_value_t[...].T.astype(d_value_ref.dtype)


def _strips(queries: int, keys: int) -> list[slice | pl.Slice]:
    """Queries that are multiplied with so many keys at once."""
    strip = STRIP if keys > LAST_COMPUTE else SHORT_TILE_STRIP
    return [pl.ds(start, min(strip, queries - start)) for start in range(0, queries, strip)]
