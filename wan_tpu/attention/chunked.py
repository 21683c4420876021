"""Exact attention in memory that does not grow with the square of the length.

Queries and keys are walked in chunks with an online softmax (Milakov and Gimelshein 2018,
arXiv:1805.02867; Rabe and Staats 2021, arXiv:2112.05682). Plain JAX, so it runs on every platform;
short lengths are one chunk and then it is the plain formula.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from wan_tpu.attention.arrays import Keys, LogSumExp, Queries

HeadsFirst = Float[Array, "batch heads queries head_dim"]

KEY_CHUNK = 1024
"""Most keys of one chunk."""

SCORES_LIMIT = 1 << 24
"""Most scores alive at once, over batch and heads; 64 MiB in float32."""


class SoftmaxState(NamedTuple):
    """The softmax over the keys seen so far, float32; merges exactly with further keys.

    Attributes:
        maximum: largest score, [batch, heads, queries].
        total: sum of exp(score - maximum), [batch, heads, queries].
        weighted: sum of exp(score - maximum) value, [batch, heads, queries, head_dim].
    """

    maximum: Float32[Array, "batch heads queries"]
    total: Float32[Array, "batch heads queries"]
    weighted: Float32[Array, "batch heads queries head_dim"]

    def normalised(self) -> Float32[Array, "batch heads queries head_dim"]:
        """The attention over the keys seen, [batch, heads, queries, head_dim] float32."""
        return self.weighted / self.total[..., None]

    def logsumexp(self) -> LogSumExp:
        """Of the scores of the keys seen, [batch, heads, queries] float32."""
        return self.maximum + jnp.log(self.total)


def empty_state(query: HeadsFirst) -> SoftmaxState:
    """The state before any key, for queries [batch, heads, queries, head_dim]."""
    per_query = query.shape[:-1]
    return SoftmaxState(
        maximum=jnp.full(per_query, -jnp.inf, jnp.float32),
        total=jnp.zeros(per_query, jnp.float32),
        weighted=jnp.zeros(query.shape, jnp.float32),
    )


def attend_further(
    state: SoftmaxState,
    query: HeadsFirst,
    key: Float[Array, "batch heads keys head_dim"],
    value: Float[Array, "batch heads keys head_dim"],
) -> SoftmaxState:
    """Takes more keys into the softmax.

    Args:
        state: the softmax so far.
        query: [batch, heads, queries, head_dim], already scaled.
        key: [batch, heads, keys, head_dim].
        value: [batch, heads, keys, head_dim].
    """
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
    maximum = jnp.maximum(state.maximum, scores.max(axis=-1))
    weights = jnp.exp(scores - maximum[..., None])  # [batch, heads, queries, keys]
    rescale = jnp.exp(state.maximum - maximum)  # 0 for the empty state, whose maximum is -inf
    product = jnp.einsum(
        "bhqk,bhkd->bhqd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    return SoftmaxState(
        maximum=maximum,
        total=state.total * rescale + weights.sum(axis=-1),
        weighted=state.weighted * rescale[..., None] + product,
    )


def chunked_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    *,
    key_chunk: int = KEY_CHUNK,
    scores_limit: int = SCORES_LIMIT,
) -> Queries:
    """Attention, chunked over queries and keys.

    Args:
        query: [batch, queries, heads, head_dim].
        key: [batch, keys, heads, head_dim].
        value: [batch, keys, heads, head_dim].
        key_chunk: most keys of one chunk.
        scores_limit: most scores held at once, `batch x heads x query chunk x key chunk`.

    Returns:
        [batch, queries, heads, head_dim] in the query's dtype.
    """
    return chunked_with_logsumexp(
        query, key, value, key_chunk=key_chunk, scores_limit=scores_limit
    )[0]


def chunked_with_logsumexp(
    query: Queries,
    key: Keys,
    value: Keys,
    *,
    key_chunk: int = KEY_CHUNK,
    scores_limit: int = SCORES_LIMIT,
) -> tuple[Queries, LogSumExp]:
    """`chunked_attention`, and the logsumexp of each query's scores.

    Returns:
        [batch, queries, heads, head_dim] in the query's dtype; [batch, heads, queries] float32.
    """
    batch, num_queries, heads, head_dim = query.shape
    dtype = query.dtype
    key_chunk = _even_chunk(key.shape[1], key_chunk)
    query_chunk = _even_chunk(num_queries, max(scores_limit // (batch * heads * key_chunk), 1))

    # All float32, for where this is chosen: a CPU takes 1.8 times as long in bfloat16 (2,048
    # tokens, 8 x 128; equal at 80 tokens), and a GPU is given float32 only.
    query = query.astype(jnp.float32) * head_dim**-0.5
    query, key, value = (x.astype(jnp.float32).swapaxes(1, 2) for x in (query, key, value))
    # query: [batch, heads, queries, head_dim]; key and value likewise

    def attend_to_all(chunk: HeadsFirst) -> tuple[HeadsFirst, LogSumExp]:
        """[batch, heads, query chunk, head_dim] over every key."""
        state = _over_key_chunks(chunk, key, value, key_chunk)
        return state.normalised().astype(dtype), state.logsumexp()

    num_chunks = -(-num_queries // query_chunk)
    padding = num_chunks * query_chunk - num_queries  # rows of zeros, dropped below
    query = jnp.pad(query, ((0, 0), (0, 0), (0, padding), (0, 0)))
    query = query.reshape(batch, heads, num_chunks, query_chunk, head_dim)
    out, logsumexp = jax.lax.map(attend_to_all, jnp.moveaxis(query, 2, 0))
    # [num_chunks, batch, heads, query_chunk, head_dim], and without head_dim
    out = jnp.moveaxis(out, (0, 3), (1, 2)).reshape(batch, -1, heads, head_dim)
    logsumexp = jnp.moveaxis(logsumexp, 0, 2).reshape(batch, heads, -1)
    return out[:, :num_queries], logsumexp[:, :, :num_queries]


def _over_key_chunks(
    query: HeadsFirst,
    key: Float[Array, "batch heads keys head_dim"],
    value: Float[Array, "batch heads keys head_dim"],
    key_chunk: int,
) -> SoftmaxState:
    """The softmax of scaled queries [batch, heads, queries, head_dim] over all keys.

    Whole chunks in a scan, then the keys that are left: no key is padded, so none needs a mask.
    """
    whole, left = divmod(key.shape[2], key_chunk)

    def step(state: SoftmaxState, index: Int32[Array, ""]) -> tuple[SoftmaxState, None]:
        chunk = [
            jax.lax.dynamic_slice_in_dim(x, index * key_chunk, key_chunk, 2) for x in (key, value)
        ]
        return attend_further(state, query, *chunk), None

    state, _ = jax.lax.scan(step, empty_state(query), jnp.arange(whole))
    if left:
        state = attend_further(state, query, key[:, :, -left:], value[:, :, -left:])
    return state


def _even_chunk(length: int, limit: int) -> int:
    """The chunk that walks `length` in as few steps as `limit` allows, all about as long."""
    return -(-length // -(-length // limit))
