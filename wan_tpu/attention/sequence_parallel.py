"""Attention split over a mesh: batch over dp, tokens over sp, heads over tp.

Each device attends for its own batch items and heads; what differs is how its queries come to see
the tokens of the other sp shards. Functions here take the global view and are called inside jit;
`shard_map` gives the functions below them what one device holds.

Heads stay where the projections leave them, one after the other in the channels of a token:
`[tokens, heads * head_dim]`. Splitting the two lays an array out anew in a TPU's memory. For
Ulysses the heads come in as many groups as there are shards that trade, each group one block in
memory that goes to (or comes from) one shard; elsewhere there is one group. A further way is one
more function in `_SELF_ATTENTION`.

The platform always comes from the mesh: programs are also compiled for a slice that is not there.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from wan_tpu.attention.api import (
    attend_chunks,
    attend_chunks_backward,
    attend_chunks_with_logsumexp,
)
from wan_tpu.attention.arrays import (
    AnyKeyChunks,
    Grouped,
    Int8KeyChunks,
    KeyChunks,
    QueryChunks,
    Tokens,
)
from wan_tpu.attention.int8_keys import GroupedKeys, QuantizedKeys, quantize_grouped
from wan_tpu.attention.names import FLASH_INT8, TOKEN_MAJOR
from wan_tpu.attention.ring import ring_attention, ring_forward
from wan_tpu.attention.splash_tiles import padded_length, tiles_for
from wan_tpu.geometry import ceil_to_multiple
from wan_tpu.sharding.layout import DP, SP, TP, Layout
from wan_tpu.sharding.rules import CONTEXT, GROUP_SCALES, GROUPED_HEADS, SPLIT_FEATURES

Result = TypeVar("Result")

LocalAttend = Callable[..., Array]
"""`attend_chunks` with everything chosen but the arrays and `num_keys`."""

MOST_PADDING = 0.01
"""Share of tokens that `padded_tokens` may add for the kernel: they cost everywhere else."""

TILE_TOKENS = 256
"""Tokens that suit flash's tiles and those of the products around it, per shard."""


def padded_tokens(
    num_tokens: int, multiple: int, *, mesh: Mesh, layout: Layout, implementation: str
) -> int:
    """The length to pad tokens to once, so that attention does not pad them in every layer.

    A multiple of `multiple`, and of splash's tiles where that adds at most 1%. For speed only, any
    multiple of sp gives the same result: around the kernel, one layer of 14B at 720p on a v6e-8
    moves through a chip's memory (2026-11-21, read from the compiled programs)

    | tokens, splash | tp8 | dp2-sp4 ulysses | dp2-sp4 allgather |
    |---|---|---|---|
    | 75,600 | 5.8 GB | 7.2 GB | 10.9 GB |
    | 75,776 (+0.2%) | 4.0 GB | 5.3 GB | 8.2 GB |

    so about 1.1 ms less per layer, beside 83 ms in the kernel.

    Args:
        num_tokens: real tokens.
        multiple: what the length must divide by whatever else, at least `layout.sp`.
        mesh: decides the chip.
        layout: what the mesh was made for.
        implementation: of `wan_tpu.attention.api.IMPLEMENTATIONS`, resolved (not `auto`).
    """
    assert implementation != "auto"
    assert multiple % layout.sp == 0, (multiple, str(layout))
    least = ceil_to_multiple(num_tokens, multiple)
    if implementation in TOKEN_MAJOR:
        tiled = ceil_to_multiple(num_tokens, multiple * TILE_TOKENS)
    elif implementation == "splash":
        tiled = padded_length(num_tokens, tiles_for(mesh.devices.flat[0].device_kind))
        tiled = ceil_to_multiple(tiled, multiple)
    else:
        return least
    return tiled if tiled - num_tokens <= MOST_PADDING * num_tokens else least


def group_heads(x: Tokens, *, mesh: Mesh, layout: Layout) -> Grouped:
    """[batch, tokens, heads * head_dim] -> [groups, batch, tokens, heads of a group * head_dim].

    Each tp shard groups the heads that it holds.
    """

    def per_device(x: Tokens) -> Grouped:
        # Cut, not reshaped and turned: XLA turns twice what comes out of a product of int8.
        return jnp.stack(jnp.split(x, layout.head_groups, axis=-1))

    return _shard_map(per_device, mesh, (SPLIT_FEATURES,), GROUPED_HEADS)(x)


def ungroup_heads(x: Grouped, *, mesh: Mesh) -> Tokens:
    """`group_heads` undone."""

    def per_device(x: Grouped) -> Tokens:
        return jnp.concatenate(list(x), axis=-1)

    return _shard_map(per_device, mesh, (GROUPED_HEADS,), SPLIT_FEATURES)(x)


def sharded_attend(
    query: Grouped,
    key: Grouped,
    value: Grouped,
    *,
    head_dim: int,
    mesh: Mesh,
    layout: Layout,
    implementation: str,
    num_keys: int | None = None,
) -> Grouped:
    """Self-attention over tokens that are split over sp; global view, inside jit.

    Keys of `flash-int8` are quantised before they travel: half the bytes, and the mean and the
    scale are of all tokens, the same on every layout.

    Args:
        query: [groups, batch, tokens, heads of a group * head_dim], as `group_heads` makes it;
            tokens padded to a multiple of sp, heads to `layout.padded_heads`, batch a multiple of
            dp.
        key: like `query`.
        value: like `query`.
        head_dim: features of a head.
        mesh: with the axes dp, sp and tp of `layout`; decides the platform.
        layout: decides how shards see each other's tokens.
        implementation: one of `wan_tpu.attention.api.IMPLEMENTATIONS`.
        num_keys: real tokens; the ones after are padding, are never attended, and their own
            results mean nothing. All are real when not given.

    Returns:
        Like `query`, split like it.

    Raises:
        UnknownNameError: there is no such implementation.
    """
    _check(query, head_dim, mesh, layout)
    assert query.shape == key.shape, (query.shape, key.shape)
    assert query.shape[0] == layout.head_groups, (query.shape, str(layout))
    alone = (_alone, {"attend": attend_chunks})
    way, functions = _SELF_ATTENTION[layout.sequence_parallel] if layout.sp > 1 else alone
    keys, key_spec = key, GROUPED_HEADS
    if implementation == FLASH_INT8:
        way, functions = _of_int8_keys(way, functions)
        keys = quantize_grouped(key, head_dim=head_dim, num_keys=num_keys or key.shape[2])
        key_spec = GroupedKeys._make((GROUPED_HEADS, GROUP_SCALES))
    chosen = {
        name: _for_devices_of(mesh, function, implementation, head_dim)
        for name, function in functions.items()
    }
    per_device = functools.partial(way, **chosen, num_keys=num_keys)
    specs = (GROUPED_HEADS, key_spec, GROUPED_HEADS)
    return _shard_map(per_device, mesh, specs, GROUPED_HEADS)(query, keys, value)


def cross_attend(
    query: Float[Array, "1 batch tokens channels"],
    key: Float[Array, "1 batch keys channels"],
    value: Float[Array, "1 batch keys channels"],
    *,
    head_dim: int,
    mesh: Mesh,
    layout: Layout,
    implementation: str,
) -> Float[Array, "1 batch tokens channels"]:
    """Attention of tokens, split over sp, to keys that every sp shard holds whole; global view.

    Args:
        query: [1, batch, tokens, heads * head_dim]: one group, whatever the layout.
        key: [1, batch, keys, heads * head_dim], as many as there are, whatever that divides by:
            what an implementation pads to its tiles, it masks. All attended, for Wan's zeros after
            the prompt are real keys.
        value: like `key`.
        head_dim: features of a head.
        mesh: with the axes dp, sp and tp of `layout`; decides the platform.
        layout: what the mesh was made for.
        implementation: one of `wan_tpu.attention.api.IMPLEMENTATIONS`.

    Returns:
        Like `query`, split like it; no device speaks to another for it.

    Raises:
        UnknownNameError: there is no such implementation.
    """
    _check(query, head_dim, mesh, layout)
    per_device = functools.partial(
        _alone,
        attend=_for_devices_of(mesh, attend_chunks, implementation, head_dim),
        num_keys=None,
    )
    specs = (GROUPED_HEADS, CONTEXT, CONTEXT)
    return _shard_map(per_device, mesh, specs, GROUPED_HEADS)(query, key, value)


def _alone(
    query: QueryChunks,
    key: AnyKeyChunks,
    value: KeyChunks,
    *,
    attend: LocalAttend,
    num_keys: int | None,
) -> QueryChunks:
    """Per device: the device holds every key its queries need."""
    return attend(query, key, value, num_keys=num_keys)


def _ulysses(
    query: QueryChunks,
    key: AnyKeyChunks,
    value: KeyChunks,
    *,
    attend: LocalAttend,
    num_keys: int | None,
) -> QueryChunks:
    """Per device: trade heads for tokens, attend to all tokens for few heads, trade back.

    DeepSpeed Ulysses (Jacobs et al. 2023, arXiv:2309.14509). Before an exchange the first dimension
    counts groups of heads, after it the shards that the tokens come from, which attention takes as
    chunks: nothing is put in order. Query, key and value travel one by one: one can travel while
    the next is computed.

    Where sp has more shards than there are groups of heads, each group's keys and values come to
    several neighbours, who gather them from one another (both ways at once as USP has them: Fang
    and Zhao 2024, arXiv:2405.07719). Neighbours gather and not trade: over the 16 chips of a 4x4
    block gathering takes 39 ms of the 14B's step so, and 155 the other way; trading 155 in both.
    """
    groups, shards = len(query), jax.lax.axis_size(SP)
    neighbours = np.arange(shards).reshape(groups, -1)
    traders = None if groups == shards else neighbours.T.tolist()
    # Attention takes chunks of keys in any order, if only padding comes last.
    tokens = query.shape[2]
    is_last_padded = num_keys is None or shards * tokens - num_keys < tokens

    def exchange(x: AnyKeyChunks) -> AnyKeyChunks:
        # entry i of the first dimension goes to trader i, what trader i sent becomes it
        return jax.lax.all_to_all(
            x, SP, split_axis=0, concat_axis=0, axis_index_groups=traders, tiled=True
        )

    def gather(x: AnyKeyChunks) -> Array:
        # [groups, batch, tokens, channels] -> as many chunks as shards, or chunks of all neighbours
        axis = 0 if is_last_padded else 2
        return jax.lax.all_gather(
            x, SP, axis=axis, axis_index_groups=neighbours.tolist(), tiled=True
        )

    query, key, value = (exchange(x) for x in (query, key, value))
    if groups < shards:
        key, value = gather(key), gather(value)
    return exchange(attend(query, key, value, num_keys=num_keys))


def _allgather(
    query: QueryChunks,
    key: AnyKeyChunks,
    value: KeyChunks,
    *,
    attend: LocalAttend,
    num_keys: int | None,
) -> QueryChunks:
    """Per device: gather every key and value, attend for the device's own queries.

    Takes and returns [1, batch, tokens / sp, heads * head_dim]; any number of heads.
    """
    key, value = (jax.lax.all_gather(x, SP, axis=0, tiled=True) for x in (key, value))
    # each [sp, batch, tokens / sp, heads * head_dim]
    return attend(query, key, value, num_keys=num_keys)


_Way = tuple[Callable[..., Array], dict[str, Callable[..., Any]]]
"""A way to share the sequence, per device, and the functions that it takes."""

_SELF_ATTENTION: dict[str, _Way] = {
    "ulysses": (_ulysses, {"attend": attend_chunks}),
    "allgather": (_allgather, {"attend": attend_chunks}),
    "ring": (
        ring_attention,
        {"attend": attend_chunks_with_logsumexp, "attend_backward": attend_chunks_backward},
    ),
}
"""By the names of `wan_tpu.sharding.layout.SEQUENCE_PARALLEL`."""


def _of_int8_keys(way: Callable[..., Array], functions: dict[str, Callable[..., Any]]) -> _Way:
    """The same way for quantised keys, which have no gradient."""
    share = ring_forward if way is ring_attention else way

    def per_device(
        query: QueryChunks,
        keys: GroupedKeys,
        value: KeyChunks,
        *,
        attend: Callable[..., Any],
        num_keys: int | None,
    ) -> QueryChunks:
        def with_scale(
            query: QueryChunks, values: Int8KeyChunks, value: KeyChunks, *, num_keys: int | None
        ) -> Any:
            return attend(query, QuantizedKeys(values, scale), value, num_keys=num_keys)

        # Of the group of heads that comes to this device.
        shards_of_group = jax.lax.axis_size(SP) // len(keys.scale)
        scale = keys.scale[jax.lax.axis_index(SP) // shards_of_group]
        return share(query, keys.values, value, attend=with_scale, num_keys=num_keys)

    return per_device, {"attend": functions["attend"]}


def _for_devices_of(
    mesh: Mesh, attend: Callable[..., Result], implementation: str, head_dim: int
) -> Callable[..., Result]:
    """One of `attend_chunks` for the mesh's devices, not for this process's own."""
    return functools.partial(
        attend,
        head_dim=head_dim,
        implementation=implementation,
        device=mesh.devices.flat[0],
    )


def _shard_map(
    per_device: Callable[..., Array],
    mesh: Mesh,
    in_specs: tuple[Any, ...],
    out_specs: PartitionSpec,
) -> Callable[..., Array]:
    # check_vma: Pallas calls do not say over which axes their results vary.
    return jax.shard_map(
        per_device, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def _check(query: Grouped, head_dim: int, mesh: Mesh, layout: Layout) -> None:
    """Holds callers to their part; shapes were padded and layouts checked long before."""
    assert dict(mesh.shape) == {DP: layout.dp, SP: layout.sp, TP: layout.tp}, (
        mesh.shape,
        str(layout),
    )
    _, batch, tokens, channels = query.shape
    split = (batch % layout.dp, tokens % layout.sp, channels % (layout.tp * head_dim))
    assert split == (0, 0, 0), f"{query.shape} does not divide over {layout}"
