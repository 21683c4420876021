"""Flash attention's backward: gradients of queries, keys and values from result and logsumexp."""

import jax.numpy as jnp
from jaxtyping import Array

from wan_tpu.attention.arrays import KeyChunks, LogSumExp, QueryChunks


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
) -> tuple[QueryChunks, KeyChunks, KeyChunks]:
    """Gradients of `wan_tpu.attention.flash.flash_with_logsumexp`'s arguments.

    With `out` and `logsumexp` over all keys and `key` and `value` some of them, these are the
    gradients of those keys and values, and these keys' share of the queries'.

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

    Returns:
        Gradients like `query`, `key` and `value`.
    """

    def heads(x: Array) -> Array:
        """[chunks, batch, chunk, heads * head_dim] -> [batch, heads, tokens, head_dim]."""
        chunks, batch, chunk, channels = x.shape
        x = x.astype(jnp.float32).reshape(chunks, batch, chunk, channels // head_dim, head_dim)
        return x.transpose(1, 3, 0, 2, 4).reshape(batch, -1, chunks * chunk, head_dim)

    def back(x: Array, like: Array) -> Array:
        chunks, batch, chunk, channels = like.shape
        x = x.reshape(batch, channels // head_dim, chunks, chunk, head_dim)
        return x.transpose(2, 0, 3, 1, 4).reshape(like.shape).astype(like.dtype)

    q, k, v, o, do = (heads(x) for x in (query, key, value, out, d_out))
    real = (jnp.arange(k.shape[2]) < num_keys)[:, None]
    k, v = (jnp.where(real, x, 0) for x in (k, v))
    mean = (o * do).sum(-1)
    if d_logsumexp is not None:
        mean = mean - d_logsumexp
    fine = jnp.isfinite(logsumexp)[..., None]
    q = jnp.where(fine, q, 0)
    mean = jnp.where(fine, mean[..., None], 0)
    scale = head_dim**-0.5
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k, precision="highest") * scale
    weights = jnp.where(fine & real[:, 0], jnp.exp(scores - logsumexp[..., None]), 0)
    d_scores = weights * (jnp.einsum("bhqd,bhkd->bhqk", do, v, precision="highest") - mean) * scale
    d_query = jnp.einsum("bhqk,bhkd->bhqd", d_scores, k, precision="highest")
    d_key = jnp.einsum("bhqk,bhqd->bhkd", d_scores, q, precision="highest")
    d_value = jnp.einsum("bhqk,bhqd->bhkd", weights, do, precision="highest")
    return back(d_query, query), back(d_key, key), back(d_value, value)
