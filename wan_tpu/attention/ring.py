"""Ring attention: keys and values go round the sp shards, each device keeps its own queries.

Liu, Zaharia and Abbeel 2023, arXiv:2310.01889. The softmax over all keys is put together, exactly,
from the softmax over each shard's keys and its logsumexp. No heads are traded, so any number of
them goes, and sp may be larger than it; a device holds two shards' keys and values, not all.

What one step of 14B costs a v6e-8's chip with sp8 (720p, the guidance pair, 75,776 tokens of which
75,600 are real; read from the compiled programs, 2026-11-21, jax 0.10.2, libtpu 0.0.42.1):

| | peak GiB | HBM GB |
|---|---|---|
| ulysses | 4.6 | 421 |
| allgather | 7.1 | 576 |
| ring | 6.4 | 2,514 |

So the ring is for more shards than ulysses can give heads to. What costs it: the merged result is
read and written once a turn in float32, each head's weight spread over its channels in memory, and
padding makes a second kernel. The turns are a scan: written out, the compiler keeps several shards'
results until it merges them. In the scan's body the transfers start before the kernel and end after
it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from wan_tpu.sharding.layout import SP

NOTHING = -1e30
"""Logsumexp over no key: its exp is 0 beside any real one, and two of them merge without NaN."""


class Partial(NamedTuple):
    """Attention over some of the keys.

    Attributes:
        attended: softmax over these keys alone, times their values, [1, batch, queries,
            heads * head_dim].
        logsumexp: of their scores, [batch, heads, queries], float32.
    """

    attended: jax.Array
    logsumexp: jax.Array


_State = tuple[Partial, jax.Array, jax.Array]


def ring_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    attend: Callable[..., Any],
    num_keys: int | None,
) -> jax.Array:
    """Per device: attend to one shard's keys after the other's while they go round.

    Args:
        query: [1, batch, tokens / sp, heads * head_dim]; any number of heads.
        key: like `query`.
        value: like `query`.
        attend: `wan_tpu.attention.api.attend_chunks` with everything chosen but the arrays,
            `num_keys` and `with_logsumexp`.
        num_keys: real keys of all shards together; the ones after are padding. All when None.

    Returns:
        Like `query`.
    """
    ways, here = jax.lax.axis_size(SP), jax.lax.axis_index(SP)
    real = real_keys(num_keys, key.shape[2], ways)

    def attend_to(shard: jax.Array, key: jax.Array, value: jax.Array) -> Partial:
        return _attend_to_block(query, key, value, shard % ways, real, attend)

    def turn(state: _State, index: jax.Array) -> tuple[_State, None]:
        merged, key, value = state
        # Sent before it is attended to: the links work while the matrix unit does.
        next_key, next_value = _to_next_shard(key), _to_next_shard(value)
        return (merge(merged, attend_to(here - index, key, value)), next_key, next_value), None

    _, shape = jax.eval_shape(attend_to, here, key, value)
    state = (_nothing(query, jnp.float32, shape), key, value)
    (merged, key, value), _ = jax.lax.scan(turn, state, jnp.arange(ways - 1))
    merged = merge(merged, attend_to(here + 1, key, value))  # the last one is sent nowhere
    return merged.attended.astype(query.dtype)


def real_keys(num_keys: int | None, length: int, ways: int) -> tuple[int, ...]:
    """How many keys of each shard are real, when each shard holds `length` and padding comes last.

    One shard may hold both kinds, those after it padding only.
    """
    total = ways * length if num_keys is None else num_keys
    return tuple(min(max(total - shard * length, 0), length) for shard in range(ways))


def merge(one: Partial, other: Partial) -> Partial:
    """Attention over the keys of both, float32."""
    logsumexp = jnp.logaddexp(one.logsumexp, other.logsumexp)
    first, second = (
        part.attended.astype(jnp.float32)
        * _per_channel(jnp.exp(part.logsumexp - logsumexp), part.attended.shape)
        for part in (one, other)
    )
    return Partial(first + second, logsumexp)


def _attend_to_block(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    shard: jax.Array,
    real: tuple[int, ...],
    attend: Callable[..., Any],
) -> Partial:
    """Per device: attention over the keys of `shard`, of which `real[shard]` are no padding.

    The count must be static for the kernels, and which shard's turn it is differs from device to
    device, so each count that occurs is a branch: one without padding, else two or three.
    """

    def branch(count: int) -> Callable[..., Partial]:
        if count == 0:
            return lambda query, _key, _value: _nothing(query, query.dtype, logsumexp)
        return lambda *arrays: Partial(*attend(*arrays, num_keys=count, with_logsumexp=True))

    counts = tuple(dict.fromkeys(real))
    _, logsumexp = jax.eval_shape(branch(counts[0]), query, key, value)  # the first has real keys
    if len(counts) == 1:
        return branch(counts[0])(query, key, value)
    which = jnp.asarray([counts.index(count) for count in real])[shard]
    return jax.lax.switch(which, [branch(count) for count in counts], query, key, value)


def _nothing(query: jax.Array, dtype: jax.typing.DTypeLike, logsumexp: Any) -> Partial:
    """Attention over no keys at all, with a logsumexp of this shape; disappears in any merge."""
    return Partial(jnp.zeros_like(query, dtype), jnp.full(logsumexp.shape, NOTHING, jnp.float32))


def _to_next_shard(x: jax.Array) -> jax.Array:
    """Per device: gives its block to the next shard and takes that of the one before."""
    ways = jax.lax.axis_size(SP)
    return jax.lax.ppermute(x, SP, [(shard, (shard + 1) % ways) for shard in range(ways)])


def _per_channel(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """[batch, heads, queries] -> [1, batch, queries, heads * head_dim]."""
    batch, heads, queries = x.shape
    x = x.swapaxes(1, 2)[..., None]  # [batch, queries, heads, 1]
    return jnp.broadcast_to(x, (batch, queries, heads, shape[-1] // heads)).reshape(shape)
