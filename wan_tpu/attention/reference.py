"""What attention means: every other implementation is tested against this one.

Holds the whole score matrix, `batch x heads x queries x keys` float32, its gradient three of them:
short lengths only.
"""

import jax
import jax.numpy as jnp

from wan_tpu.attention.arrays import Keys, LogSumExp, Queries
from wan_tpu.attention.residuals import name_residuals


def reference_attention(query: Queries, key: Keys, value: Keys) -> Queries:
    """softmax(query key^T / sqrt(head_dim)) value, in float32 throughout.

    Args:
        query: [batch, queries, heads, head_dim].
        key: [batch, keys, heads, head_dim].
        value: [batch, keys, heads, head_dim].

    Returns:
        [batch, queries, heads, head_dim] in the query's dtype.
    """
    return reference_with_logsumexp(query, key, value)[0]


def reference_with_logsumexp(query: Queries, key: Keys, value: Keys) -> tuple[Queries, LogSumExp]:
    """`reference_attention`, and the logsumexp of each query's scores.

    Returns:
        [batch, queries, heads, head_dim] in the query's dtype; [batch, heads, queries] float32.
    """
    dtype = query.dtype
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    # "highest": the TPU's default for float32 products is one bfloat16 pass.
    scores = (
        jnp.einsum("bqhd,bkhd->bhqk", query, key, precision="highest") * query.shape[-1] ** -0.5
    )
    weights = jax.nn.softmax(scores, axis=-1)  # [batch, heads, queries, keys]
    attended = jnp.einsum("bhqk,bkhd->bqhd", weights, value, precision="highest")
    return name_residuals(attended.astype(dtype), jax.nn.logsumexp(scores, axis=-1))
