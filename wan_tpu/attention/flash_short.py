"""Flash attention's forward kernel for few keys, as those of a text: all of them in one tile.

A block of queries meets all keys at once: nothing is fetched, added up or rescaled block by block.
And nothing is subtracted from the scores: exponentials in float32 reach from 2^-126 to 2^127, and
any reference within is exact, 0 as well. Queries and keys of Wan's models are normalised: their
scores are near 0. Should the sum of a query's weights be far from 1, the block is done once more,
with the maximum of each query's scores as the reference.

As in `wan_tpu.attention.flash_kernel` the product with the values stands behind the scores and
exponentials of the next strip of queries. A block is one piece for the compiler: no weights are
carried from one to the next.

Cycles per (query, key) pair x 1e-3 of 9,472 queries and 512 keys, by the compiler's schedule for
v6e (2026-11-27, jax 0.10.2, libtpu 0.0.42.1): 1.71; with a maximum before the exponentials 2.23;
as a block of many keys 3.10 (`benchmarks/results/2026-11-27-one-pass.md`).
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
from wan_tpu.attention.flash_blocks import LANES, block_limits
from wan_tpu.attention.flash_kernel import only_first, strips, sums_of_weights
from wan_tpu.geometry import ceil_to_multiple

MOST_KEYS = 1024
"""Keys that are few: 512 of a text, 257 of a picture. Their scores with a strip take 2 MiB."""

STRIP = 512
"""Queries of one product."""

SMALLEST_SUM, LARGEST_SUM = 2.0**-64, 2.0**64
"""Of a query's weights. Between these what is lost below 2^-126 is no part of it, and values times
weights stay far from 2^128."""

_EXCLUDED = -1e30
"""Score of a key that is none: its weight is 0."""


def takes(key_chunks: int, key_chunk: int) -> bool:
    """Whether so many chunks of so many keys are few: one of them."""
    return key_chunks == 1 and key_chunk <= MOST_KEYS


def short_block(query_chunk: int, *, device_kind: str, itemsize: int) -> int:
    """Queries of a block, of a chunk of so many: little beyond the end.

    Args:
        query_chunk: queries of a chunk.
        device_kind: of the chip that will run it.
        itemsize: bytes of a number.
    """
    most = block_limits(device_kind).queries * 2 // max(itemsize, 2)
    return ceil_to_multiple(-(-query_chunk // -(-query_chunk // most)), LANES)


def short_forward(
    query: QueryChunks,
    key: KeyChunks,
    value: KeyChunks,
    *,
    head_dim: int,
    num_keys: int,
    interpret: bool,
    device_kind: str,
    logsumexp: bool,
    name: str,
) -> tuple[QueryChunks, LogSumExp | None]:
    """`flash_forward.flash_forward` for keys that `takes` says are few.

    Args:
        query: [chunks, batch, query chunk, heads * head_dim].
        key: [1, batch, keys, heads * head_dim].
        value: like `key`.
        head_dim: features of a head; on a TPU a multiple of 128.
        num_keys: keys at this position and later are never attended, whatever they hold.
        interpret: run the kernel in Pallas' interpreter, on any platform.
        device_kind: of what will run it, as `jax.Device` says.
        logsumexp: whether it is written, too.
        name: that programs call it by.

    Returns:
        like `query`; [batch, heads, queries of all chunks] in float32, or None.
    """
    chunks, batch, chunk, channels = query.shape
    heads, keys = channels // head_dim, ceil_to_multiple(key.shape[2], LANES)
    block = short_block(chunk, device_kind=device_kind, itemsize=query.dtype.itemsize)
    blocks = pl.cdiv(chunk, block)

    query_spec = pl.BlockSpec(
        (None, None, block, head_dim), lambda b, h, i: (i // blocks, b, i % blocks, h)
    )
    key_spec = pl.BlockSpec((None, None, keys, head_dim), lambda b, h, i: (0, b, 0, h))
    logsumexp_spec = pl.BlockSpec(
        (None, None, None, 1, block), lambda b, h, i: (i // blocks, b, h, 0, i % blocks)
    )
    shapes = [
        jax.ShapeDtypeStruct(query.shape, query.dtype),
        jax.ShapeDtypeStruct((chunks, batch, heads, 1, chunk), jnp.float32),
    ]
    out, *rows = pl.pallas_call(
        functools.partial(_kernel, num_keys=num_keys, query_chunk=chunk),
        grid=(batch, heads, chunks * blocks),
        in_specs=[query_spec, key_spec, key_spec],
        out_specs=[query_spec, logsumexp_spec][: 1 + logsumexp],
        out_shape=shapes[: 1 + logsumexp],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel"),
            vmem_limit_bytes=block_limits(device_kind).vmem_bytes,
        ),
        interpret=interpret,
        name=name,
    )(query, key, value)
    if not logsumexp:
        return out, None
    rows = jnp.moveaxis(rows[0][:, :, :, 0], 0, 2)  # [batch, heads, chunks, chunk]
    return out, rows.reshape(batch, heads, chunks * chunk)


def _kernel(
    query_ref: Any, key_ref: Any, value_ref: Any, out_ref: Any, *logsumexp_ref: Any,
    num_keys: int, query_chunk: int,
) -> None:  # fmt: skip
    """A block of queries against all keys.

    Args:
        query_ref: [queries, head_dim]; out_ref: likewise.
        key_ref: [keys, head_dim]; value_ref: likewise; rows after `num_keys` may hold anything.
        logsumexp_ref: [1, queries], float32; only where it is asked for.
        num_keys: real keys.
        query_chunk: queries of a chunk.
    """
    block, head_dim = query_ref.shape
    left = query_chunk - pl.program_id(2) % pl.cdiv(query_chunk, block) * block
    precision = jax.lax.Precision.HIGHEST if query_ref.dtype == jnp.float32 else None
    dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32, precision=precision)
    key, value = (only_first(num_keys, ref[...], 0) for ref in (key_ref, value_ref))
    value_t = value.T

    def scores_of(strip: pl.Slice) -> Float32[Array, "keys queries"]:
        scaled = query_ref[strip, :].astype(jnp.float32) * (head_dim**-0.5 * math.log2(math.e))
        scores = dot(key, scaled.T.astype(key.dtype))
        return only_first(num_keys, scores, _EXCLUDED) if num_keys < len(key) else scores

    def finish(
        strip: pl.Slice,
        weights: Float[Array, "keys queries"],
        reference: Float32[Array, "1 queries"] | float,
    ) -> Float32[Array, "1 queries"]:
        """Writes the results; the sums of the weights."""
        sums = sums_of_weights(weights).sum(0, keepdims=True)
        out_ref[strip, :] = (dot(value_t, weights) / sums).T.astype(out_ref.dtype)
        for ref in logsumexp_ref:
            ref[:, strip] = (reference + jnp.log2(sums)) * math.log(2)
        return sums

    before, sums = None, []
    for strip in strips(block, STRIP):
        weights = jnp.exp2(scores_of(strip)).astype(value.dtype)
        if before is not None:
            sums.append(finish(*before, 0.0))
        before = strip, weights
    assert before is not None
    sums.append(finish(*before, 0.0))
    joined = jnp.concatenate(sums, axis=1)
    is_query = jax.lax.broadcasted_iota(jnp.int32, joined.shape, 1) < left
    in_range = (joined > SMALLEST_SUM) & (joined < LARGEST_SUM)

    @pl.when(jnp.logical_not(jnp.all(in_range | jnp.logical_not(is_query))))
    def _() -> None:
        @pl.loop(0, block // LANES)
        def _(index: Any) -> None:
            strip = pl.Slice(pl.multiple_of(index * LANES, LANES), LANES)  # type: ignore[arg-type]
            scores = scores_of(strip)
            reference = scores.max(0, keepdims=True)
            finish(strip, jnp.exp2(scores - reference).astype(value.dtype), reference)
