"""Exact attention in memory that does not grow with the square of the length.

Queries and keys are walked in chunks with an online softmax (Milakov and Gimelshein 2018,
arXiv:1805.02867; Rabe and Staats 2021, arXiv:2112.05682). Plain JAX, so it runs on every platform;
short lengths are one chunk of queries and keys and then it is the plain formula, of as many heads
at a time as a CPU's cache holds the scores of.

The backward keeps no scores: it makes those of a chunk again from the logsumexp. On a CPU that is
faster than keeping them, too: forward and backward of 8 x 8 heads of 16, milliseconds on two cores
with other work on them (AMD EPYC, 2026-11-26, jax 0.10.2):

| tokens | this | weights kept | `jax.grad` of the formula | of `reference_attention` |
|---|---|---|---|---|
| 85 | 2.0 | 1.7 | 2.6 | 2.1 |
| 200 | 7.6 | 8.5 | 42 | 27 |
| 400 | 27 | 69 | 115 | 105 |
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from wan_tpu.attention.arrays import Keys, LogSumExp, Queries
from wan_tpu.attention.residuals import Residuals, name_residuals, of_queries

HeadsFirst = Float[Array, "batch_heads queries head_dim"]
"""Batch items are as good as heads here."""

KeysFirst = Float[Array, "batch_heads keys head_dim"]

KEY_CHUNK = 1024
"""Most keys of one chunk."""

SCORES_LIMIT = 1 << 24
"""Most scores alive at once, over batch and heads; 64 MiB in float32."""

CPU_SCORES_LIMIT = 1 << 20
"""The same on a CPU, whose cache holds 4 MiB: 1,560 tokens, 2 x 8 heads of 16, take 26 ms forward,
with 64 MiB 166 ms (2026-11-26, as above)."""


class SoftmaxState(NamedTuple):
    """The softmax over the keys seen so far, float32; merges exactly with further keys.

    Attributes:
        maximum: largest score, [heads, queries].
        total: sum of exp(score - maximum), [heads, queries].
        weighted: sum of exp(score - maximum) value, [heads, queries, head_dim].
    """

    maximum: Float32[Array, "batch_heads queries"]
    total: Float32[Array, "batch_heads queries"]
    weighted: Float32[Array, "batch_heads queries head_dim"]

    def normalised(self) -> Float32[Array, "batch_heads queries head_dim"]:
        """The attention over the keys seen, [heads, queries, head_dim] float32."""
        return self.weighted / self.total[..., None]

    def logsumexp(self) -> Float32[Array, "batch_heads queries"]:
        """Of the scores of the keys seen, [heads, queries] float32."""
        return self.maximum + jnp.log(self.total)


def empty_state(query: HeadsFirst) -> SoftmaxState:
    """The state before any key, for queries [heads, queries, head_dim]."""
    per_query = query.shape[:-1]
    return SoftmaxState(
        maximum=jnp.full(per_query, -jnp.inf, jnp.float32),
        total=jnp.zeros(per_query, jnp.float32),
        weighted=jnp.zeros(query.shape, jnp.float32),
    )


def attend_further(
    state: SoftmaxState, query: HeadsFirst, key: KeysFirst, value: KeysFirst
) -> SoftmaxState:
    """Takes more keys into the softmax.

    Args:
        state: the softmax so far.
        query: [heads, queries, head_dim], already scaled.
        key: [heads, keys, head_dim].
        value: [heads, keys, head_dim].
    """
    scores = jnp.einsum("hqd,hkd->hqk", query, key)
    maximum = jnp.maximum(state.maximum, scores.max(axis=-1))
    weights = jnp.exp(scores - maximum[..., None])  # [heads, queries, keys]
    rescale = jnp.exp(state.maximum - maximum)  # 0 for the empty state, whose maximum is -inf
    return SoftmaxState(
        maximum=maximum,
        total=state.total * rescale + weights.sum(axis=-1),
        weighted=state.weighted * rescale[..., None] + jnp.einsum("hqk,hkd->hqd", weights, value),
    )


def chunked_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    *,
    key_chunk: int = KEY_CHUNK,
    scores_limit: int = SCORES_LIMIT,
) -> Queries:
    """Attention, chunked over heads, queries and keys.

    Args:
        query: [batch, queries, heads, head_dim].
        key: [batch, keys, heads, head_dim].
        value: [batch, keys, heads, head_dim].
        key_chunk: most keys of one chunk.
        scores_limit: most scores held at once: heads x query chunk x key chunk.

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
    return _chunked(query, key, value, key_chunk, scores_limit)


def chunked_backward(
    query: Queries,
    key: Keys,
    value: Keys,
    out: Queries,
    logsumexp: LogSumExp,
    d_out: Queries,
    *,
    d_logsumexp: LogSumExp | None = None,
    key_chunk: int = KEY_CHUNK,
    scores_limit: int = SCORES_LIMIT,
) -> tuple[Queries, Keys, Keys]:
    """The gradient of attention over these keys, which may be some of those attended.

    Args:
        query: [batch, queries, heads, head_dim].
        key: [batch, keys, heads, head_dim].
        value: [batch, keys, heads, head_dim].
        out: attention over all keys, like `query`.
        logsumexp: of the scores of all keys, [batch, heads, queries].
        d_out: gradient of `out`.
        d_logsumexp: gradient of `logsumexp`; zero when None.
        key_chunk: most keys of one chunk.
        scores_limit: most scores held at once.

    Returns:
        Gradients of query, key and value, like them: from these keys.
    """
    sizes = _sizes(query, key, key_chunk, scores_limit)
    scale = query.shape[-1] ** -0.5
    batch, num_queries = query.shape[:2]

    def per_query(x: LogSumExp) -> Float32[Array, "batch_heads queries"]:
        return x.reshape(-1, num_queries)

    given = of_queries(query, out, logsumexp, d_out, d_logsumexp)
    queries = (
        _heads_first(given.query) * scale,
        per_query(given.logsumexp),
        per_query(given.mean),
        _heads_first(d_out),
    )
    keys = (_heads_first(key), _heads_first(value))
    grouped = jax.tree.map(lambda x: x.reshape(-1, sizes.heads, *x.shape[1:]), (queries, keys))
    d_query, d_key, d_value = jax.lax.map(lambda x: _backward_of_heads(x[0], x[1], sizes), grouped)
    d_query = _tokens_first(d_query * scale, batch).astype(query.dtype)
    d_key, d_value = (_tokens_first(x, batch) for x in (d_key, d_value))
    return d_query, d_key.astype(key.dtype), d_value.astype(value.dtype)


class _Sizes(NamedTuple):
    """What is worked on at a time: so many heads, queries and keys."""

    heads: int
    queries: int
    keys: int


def _sizes(query: Queries, key: Keys, key_chunk: int, scores_limit: int) -> _Sizes:
    """As many heads as the limit allows, a divisor of theirs; else one, and fewer queries."""
    batch, num_queries, heads, _ = query.shape
    keys = _even_chunk(key.shape[1], key_chunk)
    at_most = max(scores_limit // (num_queries * keys), 1)
    at_a_time = max(size for size in range(1, batch * heads + 1)
                    if batch * heads % size == 0 and size <= at_most)  # fmt: skip
    queries = _even_chunk(num_queries, max(scores_limit // (at_a_time * keys), 1))
    return _Sizes(at_a_time, queries, keys)


def _attend(
    query: Queries, key: Keys, value: Keys, key_chunk: int, scores_limit: int
) -> tuple[Queries, LogSumExp]:
    """`chunked_with_logsumexp`."""
    sizes = _sizes(query, key, key_chunk, scores_limit)
    batch, num_queries, heads, head_dim = query.shape
    # All float32, for where this is chosen: a CPU takes 1.8 times as long in bfloat16 (2,048
    # tokens, 8 x 128; equal at 80 tokens), and a GPU is given float32 only.
    query_rows, key_rows, value_rows = (_heads_first(x) for x in (query, key, value))
    query_rows = _in_chunks(query_rows * head_dim**-0.5, sizes.queries)
    chunks = len(query_rows)
    in_groups = query_rows.reshape(-1, sizes.heads, *query_rows.shape[2:])
    first_heads = jnp.tile(jnp.arange(0, batch * heads, sizes.heads), chunks)

    def attend_to_all(chunk: tuple[HeadsFirst, Int32[Array, ""]]) -> tuple[Array, Array]:
        """A few heads [heads, query chunk, head_dim] from the given one on, over every key."""
        state = _over_key_chunks(chunk[0], key_rows, value_rows, chunk[1], sizes.keys)
        return state.normalised().astype(query.dtype), state.logsumexp()

    out, logsumexp = jax.lax.map(attend_to_all, (in_groups, first_heads))
    out = out.reshape(chunks, batch, heads, *out.shape[2:])
    out = jnp.moveaxis(out, (0, 3), (1, 2)).reshape(batch, -1, heads, head_dim)[:, :num_queries]
    logsumexp = _joined(logsumexp.reshape(chunks, batch * heads, -1), num_queries)
    return out, logsumexp.reshape(batch, heads, num_queries)


def _forward(
    query: Queries, key: Keys, value: Keys, key_chunk: int, scores_limit: int
) -> tuple[tuple[Queries, LogSumExp], Residuals]:
    """`_attend`, and what its backward takes."""
    out, logsumexp = name_residuals(*_attend(query, key, value, key_chunk, scores_limit))
    return (out, logsumexp), Residuals(query, key, value, out, logsumexp)


def _backward(
    key_chunk: int,
    scores_limit: int,
    residuals: Residuals,
    gradients: tuple[Queries, LogSumExp],
) -> tuple[Queries, Keys, Keys]:
    """The gradient of `_attend`."""
    d_out, d_logsumexp = gradients
    return chunked_backward(
        *residuals, d_out,
        d_logsumexp=d_logsumexp, key_chunk=key_chunk, scores_limit=scores_limit,
    )  # fmt: skip


_chunked = jax.custom_vjp(_attend, nondiff_argnums=(3, 4))
_chunked.defvjp(_forward, _backward)


def _over_key_chunks(
    query: HeadsFirst,
    key: Float32[Array, "all_heads keys head_dim"],
    value: Float32[Array, "all_heads keys head_dim"],
    first_head: Int32[Array, ""],
    key_chunk: int,
) -> SoftmaxState:
    """The softmax of scaled queries [heads, queries, head_dim] over all keys of these heads.

    Whole chunks in a scan, then the keys that are left: no key is padded, so none needs a mask.
    """
    heads, _, head_dim = query.shape
    whole, left = divmod(key.shape[1], key_chunk)

    def further(state: SoftmaxState, start: Any, length: int) -> SoftmaxState:
        chunk = [
            jax.lax.dynamic_slice(x, (first_head, start, 0), (heads, length, head_dim))
            for x in (key, value)
        ]
        return attend_further(state, query, *chunk)

    def step(state: SoftmaxState, index: Int32[Array, ""]) -> tuple[SoftmaxState, None]:
        return further(state, index * key_chunk, key_chunk), None

    state, _ = jax.lax.scan(step, empty_state(query), jnp.arange(whole))
    return further(state, whole * key_chunk, left) if left else state


def _backward_of_heads(
    queries: tuple[Array, ...], keys: tuple[KeysFirst, KeysFirst], sizes: _Sizes
) -> tuple[HeadsFirst, KeysFirst, KeysFirst]:
    """Gradients of scaled queries, of keys and of values of a few heads.

    Queries beyond the last chunk's end are zeros with a gradient of zero: they give nothing. Keys
    beyond it are zeros, too, but have weights, which are set to 0 lest they be infinite.

    Args:
        queries: scaled queries [heads, queries, head_dim], logsumexp [heads, queries], mean
            gradient of the weights likewise, gradient of the result like the queries.
        keys: keys and values, [heads, keys, head_dim].
        sizes: of the chunks.
    """
    num_queries, num_keys = queries[0].shape[1], keys[0].shape[1]
    query_chunks = [_in_chunks(x, sizes.queries) for x in queries]
    key_chunks = [_in_chunks(x, sizes.keys) for x in keys]
    starts = jnp.arange(len(key_chunks[0])) * sizes.keys
    padded = num_keys % sizes.keys != 0

    def step(d_query: Array, chunk: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
        key, value, start = chunk  # [heads, key chunk, head_dim]
        real = start + jnp.arange(sizes.keys) < num_keys

        def against(d_keys: tuple[Array, Array], chunk: list[Array]) -> tuple[Any, Array]:
            query, logsumexp, mean, d_out = chunk
            weights = jnp.exp(jnp.einsum("hqd,hkd->hqk", query, key) - logsumexp[..., None])
            if padded:
                weights = jnp.where(real, weights, 0)
            d_weights = jnp.einsum("hqd,hkd->hqk", d_out, value)
            d_scores = weights * (d_weights - mean[..., None])
            # Sums over queries give [heads, head_dim, keys]: on a CPU 2.5 times as fast as the
            # other way round.
            further = (
                jnp.einsum("hqd,hqk->hdk", query, d_scores),
                jnp.einsum("hqd,hqk->hdk", d_out, weights),
            )
            d_keys = jax.tree.map(jnp.add, d_keys, further)
            return d_keys, jnp.einsum("hqk,hkd->hqd", d_scores, key)

        nothing = (jnp.zeros(key.swapaxes(1, 2).shape),) * 2
        d_keys, further = jax.lax.scan(against, nothing, query_chunks)
        return d_query + further, d_keys

    d_query, d_keys = jax.lax.scan(step, jnp.zeros_like(query_chunks[0]), (*key_chunks, starts))
    d_key, d_value = (_joined(x.swapaxes(2, 3), num_keys) for x in d_keys)
    return _joined(d_query, num_queries), d_key, d_value


def _in_chunks(x: Float[Array, "batch_heads tokens ..."], chunk: int) -> Float32[Array, "..."]:
    """[heads, tokens, ...] -> [chunks, heads, chunk, ...]; zeros fill the last one."""
    padding = -x.shape[1] % chunk
    x = jnp.pad(x, ((0, 0), (0, padding), *[(0, 0)] * (x.ndim - 2)))
    return jnp.moveaxis(x.reshape(len(x), -1, chunk, *x.shape[2:]), 1, 0)


def _joined(x: Float[Array, "chunks batch_heads chunk ..."], length: int) -> Float32[Array, "..."]:
    """`_in_chunks` undone."""
    x = jnp.moveaxis(x, 0, 1)  # [heads, chunks, chunk, ...]
    return x.reshape(len(x), -1, *x.shape[3:])[:, :length]


def _heads_first(x: Queries) -> HeadsFirst:
    """[batch, tokens, heads, head_dim] -> [batch * heads, tokens, head_dim] float32."""
    batch, tokens, heads, head_dim = x.shape
    return x.astype(jnp.float32).swapaxes(1, 2).reshape(batch * heads, tokens, head_dim)


def _tokens_first(x: Float[Array, "groups group_heads tokens head_dim"], batch: int) -> Queries:
    """[groups, heads of a group, tokens, head_dim] -> [batch, tokens, heads, head_dim]."""
    return x.reshape(batch, -1, *x.shape[2:]).swapaxes(1, 2)


def _even_chunk(length: int, limit: int) -> int:
    """The chunk that walks `length` in as few steps as `limit` allows, all about as long."""
    return -(-length // -(-length // limit))
