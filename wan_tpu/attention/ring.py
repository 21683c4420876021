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

So they do in the gradient's, where keys and values go round once more and the sums of their
gradients, in float32, follow one turn behind: what a turn adds is sent in the next one, beside its
kernel. One layer of 14B at 480p then takes 1,291 MiB of a chip (2026-11-26, forward included, its
own queries, keys and values aside): 32 times a shard's keys.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int8, Int32

from wan_tpu.attention.arrays import AnyKeyChunks, KeyChunks, LogSumExp, QueryChunks
from wan_tpu.attention.residuals import Residuals, name_residuals
from wan_tpu.sharding.layout import SP

Result = TypeVar("Result")

NOTHING = -1e30
"""Logsumexp over no key: its exp is 0 beside any real one, and two of them merge without NaN."""


class Partial(NamedTuple):
    """Attention over some of the keys.

    Attributes:
        attended: softmax over these keys alone, times their values, [1, batch, queries,
            heads * head_dim].
        logsumexp: of their scores, [batch, heads, queries], float32.
    """

    attended: Float[Array, "1 batch queries channels"]
    logsumexp: LogSumExp


AttendWithLogSumExp = Callable[..., tuple[Array, Array]]

AttendBackward = Callable[..., tuple[Array, Array, Array]]

Block = Float[Array, "1 batch tokens channels"]
"""A shard's queries, keys or values: [1, batch, tokens / sp, heads * head_dim]."""

Int8Block = Int8[Array, "1 batch tokens channels"]
"""A shard's keys, as whole numbers."""

_State = tuple[Partial, Array, Array]


class _Settings(NamedTuple):
    """Arguments of `ring_attention` that are no arrays."""

    attend: AttendWithLogSumExp
    attend_backward: AttendBackward
    num_keys: int | None


def ring_attention(
    query: Block,
    key: Block,
    value: Block,
    *,
    attend: AttendWithLogSumExp,
    attend_backward: AttendBackward,
    num_keys: int | None,
) -> Block:
    """Per device: attend to one shard's keys after the other's while they go round.

    For its gradient a device keeps its own queries, keys, values, result and logsumexp, nothing of
    the other shards'. Keys and values go round once more, and with them, in float32, the sums of
    their gradients: each shard adds its queries' share and passes them on, until after a whole
    round they are at home.

    Args:
        query: [1, batch, tokens / sp, heads * head_dim]; any number of heads.
        key: like `query`.
        value: like `query`.
        attend: `wan_tpu.attention.api.attend_chunks_with_logsumexp` with everything chosen but
            the arrays and `num_keys`.
        attend_backward: `wan_tpu.attention.api.attend_chunks_backward` likewise.
        num_keys: real keys of all shards together; the ones after are padding. All when None.

    Returns:
        Like `query`.
    """
    return _ring(query, key, value, _Settings(attend, attend_backward, num_keys))


def ring_forward(
    query: Block,
    key: Block | Int8Block,
    value: Block,
    *,
    attend: AttendWithLogSumExp,
    num_keys: int | None,
) -> Block:
    """`ring_attention` as it is computed; its keys may be whole numbers, which have no gradient."""
    return _once_round(query, key, value, attend, num_keys).attended.astype(query.dtype)


def _attend(query: Block, key: Block, value: Block, settings: _Settings) -> Block:
    """`ring_attention`."""
    attend, num_keys = settings.attend, settings.num_keys
    return ring_forward(query, key, value, attend=attend, num_keys=num_keys)


def _forward(
    query: Block, key: Block, value: Block, settings: _Settings
) -> tuple[Block, Residuals]:
    """`_attend`, and what its backward takes."""
    merged = _once_round(query, key, value, settings.attend, settings.num_keys)
    out, logsumexp = name_residuals(merged.attended.astype(query.dtype), merged.logsumexp)
    return out, Residuals(query, key, value, out, logsumexp)


def _backward(
    settings: _Settings, residuals: Residuals, d_out: Block
) -> tuple[Block, Block, Block]:
    """The gradient of `_attend`."""
    query, key, value, out, logsumexp = residuals
    shards, own = jax.lax.axis_size(SP), jax.lax.axis_index(SP)
    real = real_keys(settings.num_keys, key.shape[2], shards)

    def branch(count: int) -> AttendBackward:
        if count == 0:
            return lambda *arrays: nothing(*arrays[:3])
        return functools.partial(settings.attend_backward, num_keys=count)

    def nothing(query: Array, key: Array, value: Array) -> tuple[Array, Array, Array]:
        return jnp.zeros_like(query), jnp.zeros_like(key), jnp.zeros_like(value)

    def turn(state: tuple[Array, ...], index: Int32[Array, ""]) -> tuple[tuple[Array, ...], None]:
        d_query, d_key, d_value, key, value = state
        # All set out before the kernel: keys and values for the next turn, and for this one what
        # the shard before has summed for these keys in the turn before.
        next_key, next_value = _to_next_shard(key), _to_next_shard(value)
        d_key, d_value = _to_next_shard(d_key), _to_next_shard(d_value)
        branches = {count: branch(count) for count in real}
        arrays = (query, key, value, out, logsumexp, d_out)
        further = _by_count(branches, (own - index) % shards, real, *arrays)
        d_query, d_key, d_value = (
            total + part.astype(jnp.float32)
            for total, part in zip((d_query, d_key, d_value), further, strict=True)
        )
        return (d_query, d_key, d_value, next_key, next_value), None

    zeros = nothing(query, key, value)
    state = (*(x.astype(jnp.float32) for x in zeros), key, value)
    (d_query, d_key, d_value, _, _), _ = jax.lax.scan(turn, state, jnp.arange(shards))
    d_key, d_value = _to_next_shard(d_key), _to_next_shard(d_value)  # home
    return d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype)


_ring = jax.custom_vjp(_attend, nondiff_argnums=(3,))
_ring.defvjp(_forward, _backward)


def _once_round(
    query: Block,
    key: Block | Int8Block,
    value: Block,
    attend: AttendWithLogSumExp,
    num_keys: int | None,
) -> Partial:
    """Per device: attention over the keys of all shards, float32."""
    shards, own = jax.lax.axis_size(SP), jax.lax.axis_index(SP)
    real = real_keys(num_keys, key.shape[2], shards)

    def attend_to(shard: Int32[Array, ""], key: Array, value: Array) -> Partial:
        return _attend_to_block(query, key, value, shard % shards, real, attend)

    def turn(state: _State, index: Int32[Array, ""]) -> tuple[_State, None]:
        merged, key, value = state
        # Sent before it is attended to: the links work while the matrix unit does.
        next_key, next_value = _to_next_shard(key), _to_next_shard(value)
        return (merge(merged, attend_to(own - index, key, value)), next_key, next_value), None

    _, shape = jax.eval_shape(attend_to, own, key, value)
    state = (_nothing(query, jnp.float32, shape), key, value)
    (merged, key, value), _ = jax.lax.scan(turn, state, jnp.arange(shards - 1))
    return merge(merged, attend_to(own + 1, key, value))  # the last one is sent nowhere


def real_keys(num_keys: int | None, length: int, shards: int) -> tuple[int, ...]:
    """How many keys of each shard are real, when each shard holds `length` and padding comes last.

    One shard may hold both kinds, those after it padding only.
    """
    total = shards * length if num_keys is None else num_keys
    return tuple(min(max(total - shard * length, 0), length) for shard in range(shards))


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
    query: QueryChunks,
    key: AnyKeyChunks,
    value: KeyChunks,
    shard: Int32[Array, ""],
    real: tuple[int, ...],
    attend: AttendWithLogSumExp,
) -> Partial:
    """Per device: attention over the keys of `shard`, of which `real[shard]` are no padding."""

    def branch(count: int) -> Callable[..., Partial]:
        if count == 0:
            return lambda query, _key, _value: _nothing(query, query.dtype, logsumexp)
        return lambda *arrays: Partial(*attend(*arrays, num_keys=count))

    _, logsumexp = jax.eval_shape(branch(real[0]), query, key, value)  # the first has real keys
    branches = {count: branch(count) for count in real}
    return _by_count(branches, shard, real, query, key, value)


def _by_count(
    branches: dict[int, Callable[..., Result]],
    shard: Int32[Array, ""],
    real: tuple[int, ...],
    *arrays: Array,
) -> Result:
    """Per device: the branch for as many keys as are real in `shard`.

    The count must be static for the kernels, and which shard's turn it is differs from device to
    device, so each count that occurs is a branch: one without padding, else two or three.
    """
    counts = list(branches)
    if len(counts) == 1:
        return branches[counts[0]](*arrays)
    which = jnp.asarray([counts.index(count) for count in real])[shard]
    return jax.lax.switch(which, list(branches.values()), *arrays)


def _nothing(
    query: QueryChunks, dtype: jax.typing.DTypeLike, logsumexp: jax.ShapeDtypeStruct
) -> Partial:
    """Attention over no keys at all, with a logsumexp of this shape; disappears in any merge."""
    return Partial(jnp.zeros_like(query, dtype), jnp.full(logsumexp.shape, NOTHING, jnp.float32))


def _to_next_shard(x: AnyKeyChunks) -> AnyKeyChunks:
    """Per device: gives its block to the next shard and takes that of the one before."""
    shards = jax.lax.axis_size(SP)
    return jax.lax.ppermute(x, SP, [(shard, (shard + 1) % shards) for shard in range(shards)])


def _per_channel(
    x: LogSumExp, shape: tuple[int, ...]
) -> Float32[Array, "1 batch queries channels"]:
    """[batch, heads, queries] -> [1, batch, queries, heads * head_dim]."""
    batch, heads, queries = x.shape
    x = x.swapaxes(1, 2)[..., None]  # [batch, queries, heads, 1]
    return jnp.broadcast_to(x, (batch, queries, heads, shape[-1] // heads)).reshape(shape)
