"""Flash attention's forward kernel for TPU: tokens stay where the products leave them.

The kernel reads and writes `[tokens, heads * head_dim]`, the form that the projections around it
have, so nothing is transposed, split into heads or padded in memory. It takes any length.

Softmax needs a reference to subtract from the scores; any is exact, as long as nothing overflows.
The usual one, the running maximum, must be known before the first exponential of a tile, so matrix
and vector units wait for each other. Here it is the logsumexp of the keys before the block: known
when the block starts, and within `log(keys)` of their maximum. Should a block's keys stand so far
above it that their sum leaves `SUM_LIMIT` behind, that block is done again from its true maximum.

A matrix unit 256 wide has half of its rows idle in a product over head_dim 128, so the subtraction
costs nothing there: the reference is one more feature of the queries, against a 1 in the keys.

Scores are kept as `[keys, queries]`: their sums over keys are then sums of whole registers, and the
second product, `value^T weights`, keeps the matrix unit full.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Int32

from wan_tpu.attention.arrays import KeyChunks, LogSumExp, QueryChunks
from wan_tpu.geometry import ceil_to_multiple

LANES, SUBLANES = 128, 8
"""A TPU vector register of float32: kernels' tiles are multiples of its lanes."""

STRIP = 1024
"""Queries multiplied while the ones before are summed."""

KERNEL_NAME = "flash_attention"
"""Programs call it so, with the head's features: `flash_attention_head128`."""

SUM_LIMIT = 2.0**64
"""A block whose sum of weights grows past this, or is not a number, is done again.

Far from float32's 2^128, for values are multiplied by the weights and summed, too.
"""

VMEM_LIMIT_BYTES = 48 << 20
"""What the kernel may take of a core's memory: 128 MiB on a v6e, 64 MiB on a v7x."""

Index = int | Int32[Array, ""]

_EXCLUDED = -1e30
"""Score of a key that is none: its weight is 0."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Sizes of a kernel's tiles, forward or backward, multiples of `LANES`.

    Attributes:
        queries: rows of queries held at a time.
        keys: keys fetched at a time.
        compute: keys of one product.
        last_compute: keys of one product at the end of a block, where `compute` does not fit;
            divides the others.
    """

    queries: int
    keys: int
    compute: int
    last_compute: int


MAX_QUERIES, MAX_KEYS, COMPUTE, LAST_COMPUTE = 4736, 10240, 1024, 256
"""Largest blocks, and keys of one product, for `choose_blocks`.

Cycles per (query, key) pair x 1e-3 of a whole tile at head_dim 128, read from the compiler's
schedule for v6e (2026-11-21, jax 0.10.2, libtpu 0.0.42.1), by queries of a block/keys of a product:
4736/256 2.74, 4736/512 1.70, 4736/1024 1.61; splash's best there is 2.52, and 1.46 keeps the matrix
unit busy in every cycle. In strips of 256 queries instead of 1024, 3.5; of 512, 2.2.
"""


def choose_blocks(query_chunk: int, key_chunk: int) -> Blocks:
    """Blocks for given lengths of a chunk: little beyond the end, few and even steps."""
    query_blocks = -(-query_chunk // MAX_QUERIES)
    key_blocks = -(-key_chunk // MAX_KEYS)
    last_compute = min(LAST_COMPUTE, ceil_to_multiple(key_chunk, LANES))
    keys = ceil_to_multiple(-(-key_chunk // key_blocks), last_compute)
    return Blocks(
        queries=ceil_to_multiple(-(-query_chunk // query_blocks), LANES),
        keys=keys,
        compute=COMPUTE if keys >= COMPUTE else last_compute,
        last_compute=last_compute,
    )


def valid_keys(shape: tuple[int, int, int, int], num_keys: int, blocks: Blocks) -> list[int]:
    """Real keys of each block of keys [chunks, batch, chunk, channels], in the kernel's order."""
    chunks, _, chunk, _ = shape
    return [
        min(max(min(chunk, num_keys - index * chunk) - start, 0), blocks.keys)
        for index in range(chunks)
        for start in range(0, chunk, blocks.keys)
    ]


def flash_forward(
    query: QueryChunks,
    key: KeyChunks,
    value: KeyChunks,
    *,
    head_dim: int,
    num_keys: int,
    blocks: Blocks | None,
    interpret: bool,
    logsumexp: bool,
) -> tuple[QueryChunks, LogSumExp | None]:
    """The kernel, without a derivative; arguments as of `wan_tpu.attention.flash.flash_attention`.

    Args:
        logsumexp: whether it is written, too.

    Returns:
        like `query`; [batch, heads, queries of all chunks] in float32, or None.
    """
    query_chunks, batch, query_chunk, channels = query.shape
    key_chunks, _, key_chunk, _ = key.shape
    blocks = blocks or choose_blocks(query_chunk, key_chunk)
    query_blocks, key_blocks = pl.cdiv(query_chunk, blocks.queries), pl.cdiv(key_chunk, blocks.keys)
    grid = (batch, channels // head_dim, query_chunks * query_blocks, key_chunks * key_blocks)

    def query_index(b, h, i, j):
        return (i // query_blocks, b, i % query_blocks, h)

    def key_index(b, h, i, j):
        return (j // key_blocks, b, j % key_blocks, h)

    def logsumexp_index(b, h, i, j):
        return (i // query_blocks, b, h, 0, i % query_blocks)

    query_spec = pl.BlockSpec((None, None, blocks.queries, head_dim), query_index)
    key_spec = pl.BlockSpec((None, None, blocks.keys, head_dim), key_index)
    logsumexp_shape = (query_chunks, batch, channels // head_dim, 1, query_chunk)
    logsumexp_spec = pl.BlockSpec((None, None, None, 1, blocks.queries), logsumexp_index)
    per_query = functools.partial(pltpu.VMEM, dtype=jnp.float32)
    scratch = {
        "query_t": pltpu.VMEM((head_dim + LANES, blocks.queries), query.dtype),
        "block_values": per_query((head_dim, blocks.queries)),
        "block_sums": per_query((SUBLANES, blocks.queries)),
        "values": per_query((head_dim, blocks.queries)),
        "sums": per_query((1, blocks.queries)),
        "reference": per_query((1, blocks.queries)),
    }
    out, *rows = pl.pallas_call(
        functools.partial(
            _kernel,
            blocks=blocks,
            num_keys=num_keys,
            key_chunk=key_chunk,
            key_blocks=key_blocks,
        ),
        grid=grid,
        in_specs=[query_spec, key_spec, key_spec],
        out_specs=[query_spec, logsumexp_spec][: 1 + logsumexp],
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct(logsumexp_shape, jnp.float32),
        ][: 1 + logsumexp],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=VMEM_LIMIT_BYTES,
        ),
        interpret=interpret,
        name=f"{KERNEL_NAME}_head{head_dim}",
    )(query, key, value)
    if not logsumexp:
        return out, None
    rows = jnp.moveaxis(rows[0][:, :, :, 0], 0, 2)  # [batch, heads, chunks, chunk]
    return out, rows.reshape(batch, -1, query_chunks * query_chunk)


def _kernel(
    query_ref, key_ref, value_ref, out_ref, *logsumexp_ref,
    query_t, block_values, block_sums, values, sums, reference,
    blocks: Blocks, num_keys: int, key_chunk: int, key_blocks: int,
):  # fmt: skip
    """One block of queries against one block of keys.

    Args:
        query_ref: [queries, head_dim]; out_ref: likewise.
        key_ref: [keys, head_dim]; value_ref: likewise.
        logsumexp_ref: [1, queries], float32; only where it is asked for.
        query_t: [head_dim + LANES, queries], scaled; row head_dim is minus the reference.
        block_values: [head_dim, queries], float32: sum of weights * value over this block.
        block_sums: [SUBLANES, queries], float32: sums of the weights, not yet over sublanes.
        values: [head_dim, queries], float32: like `block_values`, over the blocks before.
        sums: [1, queries], float32: likewise.
        reference: [1, queries], float32, of base 2; a bfloat16 number, so that `query_t` holds it.
    """
    head_dim = query_ref.shape[-1]
    precision = jax.lax.Precision.HIGHEST if query_ref.dtype == jnp.float32 else None
    j = pl.program_id(3)
    before_chunk = j // key_blocks * key_chunk
    before_block = j % key_blocks * blocks.keys
    valid = jnp.minimum(key_chunk, num_keys - before_chunk) - before_block
    valid = jnp.clip(valid, 0, blocks.keys)

    def scores(rows, strip):
        """[rows, strip], base 2, less the reference."""
        lanes = jax.lax.broadcasted_iota(jnp.int32, (rows.size, LANES), 1)
        ones = (lanes == 0).astype(key_ref.dtype)
        return jnp.dot(
            jnp.concatenate([key_ref[rows, :], ones], axis=1),
            query_t[:, strip],
            preferred_element_type=jnp.float32,
            precision=precision,
        )

    def only_first(count, x, other):
        rows = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
        return jnp.where(rows < count, x, other)

    def attend_rows(rows, count=None):
        """Takes some keys into the block's sums: all, or the first `count` of them."""
        tile_values = value_ref[rows, :]
        if count is not None:
            tile_values = only_first(count, tile_values, 0)
        for strip in _strips(blocks.queries):
            tile_scores = scores(rows, strip)
            if count is not None:
                tile_scores = only_first(count, tile_scores, _EXCLUDED)
            weights = jnp.exp2(tile_scores)
            block_sums[:, strip] += weights.reshape(-1, SUBLANES, weights.shape[1]).sum(0)
            block_values[:, strip] += jax.lax.dot_general(
                tile_values,
                weights.astype(tile_values.dtype),
                (((0,), (0,)), ((), ())),
                preferred_element_type=jnp.float32,
                precision=precision,
            )

    def attend_block():
        block_sums[...] = jnp.zeros_like(block_sums)
        block_values[...] = jnp.zeros_like(block_values)
        done = 0
        for size in dict.fromkeys((blocks.compute, blocks.last_compute)):
            count = (valid - done) // size
            pl.loop(0, count)(lambda i, done=done, size=size: attend_rows(_tile(done, i, size)))
            done += count * size
        rest = valid - done
        pl.when(rest > 0)(lambda: attend_rows(_tile(done, 0, blocks.last_compute), rest))

    def set_reference(new):
        """Takes the nearest number that `query_t` holds exactly."""
        new = new.astype(jnp.bfloat16).astype(jnp.float32)
        reference[...] = new
        rows = jnp.broadcast_to(-new, (SUBLANES, blocks.queries))  # against ones there is one 1
        query_t[pl.ds(head_dim, SUBLANES), :] = rows.astype(query_t.dtype)

    def move_reference(new):
        """Makes `values` and `sums` relative to another reference."""
        old = reference[...]
        set_reference(new)
        change = jnp.exp2(old - reference[...])
        values[...] *= change
        sums[...] *= change

    def tile_maximum(index):
        """[1, queries]: the largest of the scores of a small tile's keys."""
        count = valid - index * blocks.last_compute
        maxima = [
            only_first(count, scores(_tile(0, index, blocks.last_compute), strip), _EXCLUDED).max(
                0, keepdims=True
            )
            for strip in _strips(blocks.queries)
        ]
        return jnp.concatenate(maxima, axis=1)

    def block_maximum():
        """[1, queries]: the largest score of the block, or the reference if that is larger."""

        def further(index, maximum):
            return jnp.maximum(maximum, tile_maximum(index))

        at_least = jnp.zeros(reference.shape, jnp.float32)
        return jax.lax.fori_loop(0, pl.cdiv(valid, blocks.last_compute), further, at_least)

    def attempt(attempts):
        attend_block()
        in_range = jnp.all(block_sums[...].sum(0) < SUM_LIMIT)
        pl.when(jnp.logical_not(in_range))(lambda: move_reference(reference[...] + block_maximum()))
        return jnp.where(in_range, 2, attempts + 1)

    @pl.when(j == 0)
    def _start():
        scaled = query_ref[...].astype(jnp.float32) * (head_dim**-0.5 * math.log2(math.e))
        query_t[pl.ds(0, head_dim), :] = scaled.T.astype(query_t.dtype)
        query_t[pl.ds(head_dim, LANES), :] = jnp.zeros((LANES, blocks.queries), query_t.dtype)
        set_reference(tile_maximum(0))
        values[...] = jnp.zeros_like(values)
        sums[...] = jnp.zeros_like(sums)

    @pl.when(valid > 0)
    def _attend():
        jax.lax.while_loop(lambda attempts: attempts < 2, attempt, 0)
        values[...] += block_values[...]
        sums[...] += block_sums[...].sum(0, keepdims=True)
        move_reference(reference[...] + jnp.log2(sums[...]))

    @pl.when(j == pl.num_programs(3) - 1)
    def _finish():
        out_ref[...] = (values[...] / sums[...]).T.astype(out_ref.dtype)
        for ref in logsumexp_ref:
            ref[...] = (reference[...] + jnp.log2(sums[...])) * math.log(2)


def _tile(start: Index, index: Index, size: int) -> slice | pl.Slice:
    """The `index`th `size` rows after `start`; all tiles start at multiples of `LANES`."""
    first = start + index * size
    return pl.ds(pl.multiple_of(first, LANES), size)  # type: ignore[arg-type]


def _strips(queries: int) -> list[slice | pl.Slice]:
    """Columns of the scores worked on together: one strip is summed, the next multiplied."""
    return [pl.ds(start, min(STRIP, queries - start)) for start in range(0, queries, STRIP)]
