"""What attention's backward needs of its forward: the result and the logsumexp, nothing of the
size of the scores. With them the weights of any keys come back as exp(score - logsumexp).

Dao et al. 2022, arXiv:2205.14135, appendix B.2.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

from wan_tpu.attention.arrays import LogSumExp, Queries
from wan_tpu.attention.names import ATTENTION_LOGSUMEXP, ATTENTION_OUT

_NO_WEIGHT = 1e30
"""A logsumexp beside which every weight is 0."""


class Residuals(NamedTuple):
    """What a forward keeps, in whatever form its backward takes the arrays.

    Attributes:
        query: as it was given.
        key: likewise.
        value: likewise.
        out: the result.
        logsumexp: of each query's scores, [batch, heads, queries].
    """

    query: Array
    key: Array
    value: Array
    out: Array
    logsumexp: LogSumExp


def name_residuals(out: Array, logsumexp: Array) -> tuple[Array, Array]:
    """Both under the names that a rematerialisation policy keeps them by.

    What is returned must also be what the model goes on with, or the policy keeps a copy and runs
    the forward again for the rest.
    """
    return checkpoint_name(out, ATTENTION_OUT), checkpoint_name(logsumexp, ATTENTION_LOGSUMEXP)


def recomputed(function: Callable[..., Array]) -> Callable[..., Array]:
    """`function`, of which a backward pass finds nothing kept but the arguments.

    That holds under every rematerialisation policy, which would find the names inside of a nested
    `jax.checkpoint`. For attention to few keys: its result takes as much room as any, and little
    time to make again.
    """

    def forward(*arguments: Array) -> tuple[Array, tuple[Array, ...]]:
        return function(*arguments), arguments

    def backward(arguments: tuple[Array, ...], d_out: Array) -> tuple[Array, ...]:
        return jax.vjp(function, *arguments)[1](d_out)

    again = jax.custom_vjp(function)
    again.defvjp(forward, backward)
    return again


class OfQueries(NamedTuple):
    """What a backward multiplies keys with.

    Attributes:
        query: [batch, queries, heads, head_dim].
        logsumexp: [batch, heads, queries] float32.
        mean: of the gradients of the query's weights, averaged with the weights, likewise.
    """

    query: Queries
    logsumexp: LogSumExp
    mean: LogSumExp


def of_queries(
    query: Queries,
    out: Queries,
    logsumexp: LogSumExp,
    d_out: Queries,
    d_logsumexp: LogSumExp | None,
) -> OfQueries:
    """What a backward needs of the queries besides `d_out`.

    The softmax subtracts the mean from the gradient of each weight. It is `out . d_out`; the
    gradient of the logsumexp, a constant for all scores of the query, goes the other way.

    A query whose logsumexp is no finite number takes no part and has no gradient: padding may hold
    anything. Its `d_out` is taken as it is, and must be zero for that.

    Args:
        query: [batch, queries, heads, head_dim].
        out: likewise.
        logsumexp: [batch, heads, queries].
        d_out: gradient of `out`, like it.
        d_logsumexp: gradient of the logsumexp, like it; zero when None.
    """
    mean = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(axis=-1).swapaxes(1, 2)
    if d_logsumexp is not None:
        mean = mean - d_logsumexp
    finite = jnp.isfinite(logsumexp)
    return OfQueries(
        query=jnp.where(finite.swapaxes(1, 2)[..., None], query, 0),
        logsumexp=jnp.where(finite, logsumexp, _NO_WEIGHT),
        mean=jnp.where(finite, mean, 0),
    )
