"""Attention split over a mesh: batch over dp, tokens over sp, heads over tp.

Each device attends for its own batch items and heads; what differs is how its queries come to see
the tokens of the other sp shards. Functions here take the global view and are called inside jit;
`shard_map` gives the functions below them what one device holds. A further way is one more function
in `_SELF_ATTENTION`.

The platform always comes from the mesh: programs are also compiled for a slice that is not there.
"""

import functools
from collections.abc import Callable

import jax
from jax.sharding import Mesh, PartitionSpec

from wan_tpu.attention.api import attend
from wan_tpu.attention.ring import ring_attention
from wan_tpu.attention.splash import padded_length, tiles_for
from wan_tpu.geometry import ceil_to_multiple
from wan_tpu.sharding.layout import DP, SP, TP, Layout

TOKENS_SPLIT = PartitionSpec(DP, SP, TP, None)
"""How `sharded_attend` splits [batch, tokens, heads, head_dim]."""

TOKENS_WHOLE = PartitionSpec(DP, None, TP, None)
"""How `cross_attend` splits the keys: every sp shard holds all of them."""

LocalAttend = Callable[..., jax.Array]
"""`attend` with everything chosen but the arrays and `num_keys`."""

MOST_PADDING = 0.01
"""Share of tokens that `padded_tokens` may add for the kernel: they cost everywhere else."""


def padded_tokens(
    num_tokens: int, multiple: int, *, mesh: Mesh, layout: Layout, implementation: str
) -> int:
    """The length to pad tokens to once, so that attention does not pad them in every layer.

    A multiple of `multiple`, and of splash's tiles where that adds at most 1%. For speed only, any
    multiple of sp gives the same result: around the kernel, one layer of 14B at 720p on a v6e-8
    moves through a chip's memory (2026-11-21, read from the compiled programs)

    | tokens | tp8 | dp2-sp4 ulysses | dp2-sp4 allgather |
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
    if implementation != "splash":
        return least
    tiled = padded_length(num_tokens, tiles_for(mesh.devices.flat[0].device_kind))
    tiled = ceil_to_multiple(tiled, multiple)
    return tiled if tiled - num_tokens <= MOST_PADDING * num_tokens else least


def sharded_attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mesh: Mesh,
    layout: Layout,
    implementation: str,
    num_keys: int | None = None,
) -> jax.Array:
    """Self-attention over tokens that are split over sp; global view, inside jit.

    Args:
        query: [batch, tokens, heads, head_dim]; tokens padded to a multiple of sp, heads to
            `layout.padded_heads`, batch a multiple of dp.
        key: like `query`.
        value: like `query`.
        mesh: with the axes dp, sp and tp of `layout`; decides the platform.
        layout: decides how shards see each other's tokens.
        implementation: one of `wan_tpu.attention.api.IMPLEMENTATIONS`.
        num_keys: real tokens; the ones after are padding, are never attended, and their own
            results mean nothing. All are real when not given.

    Returns:
        [batch, tokens, heads, head_dim] in the query's dtype, split like `query`.

    Raises:
        UnknownNameError: there is no such implementation.
    """
    _check(query, mesh, layout)
    assert query.shape == key.shape, (query.shape, key.shape)
    assert query.shape[2] == layout.padded_heads(query.shape[2]), (query.shape, str(layout))
    per_device = functools.partial(
        _SELF_ATTENTION[layout.sequence_parallel] if layout.sp > 1 else _alone,
        attend=_local_attend(mesh, implementation),
        num_keys=num_keys,
    )
    specs = (TOKENS_SPLIT, TOKENS_SPLIT, TOKENS_SPLIT)
    return _shard_map(per_device, mesh, specs)(query, key, value)


def cross_attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    mesh: Mesh,
    layout: Layout,
    implementation: str,
) -> jax.Array:
    """Attention of tokens, split over sp, to text that every sp shard holds whole; global view.

    Args:
        query: [batch, tokens, heads, head_dim], as in `sharded_attend`.
        key: [batch, text, heads, head_dim]; all attended, for Wan's zeros after the prompt are
            real keys.
        value: like `key`.
        mesh: with the axes dp, sp and tp of `layout`; decides the platform.
        layout: what the mesh was made for.
        implementation: one of `wan_tpu.attention.api.IMPLEMENTATIONS`.

    Returns:
        [batch, tokens, heads, head_dim] in the query's dtype, split like `query`; no device speaks
        to another for it.

    Raises:
        UnknownNameError: there is no such implementation.
    """
    _check(query, mesh, layout)
    per_device = functools.partial(
        _alone, attend=_local_attend(mesh, implementation), num_keys=None
    )
    return _shard_map(per_device, mesh, (TOKENS_SPLIT, TOKENS_WHOLE, TOKENS_WHOLE))(
        query, key, value
    )


def _alone(
    query: jax.Array, key: jax.Array, value: jax.Array, *, attend: LocalAttend, num_keys: int | None
) -> jax.Array:
    """Per device: the device holds every key its queries need."""
    return attend(query, key, value, num_keys=num_keys)


def _ulysses(
    query: jax.Array, key: jax.Array, value: jax.Array, *, attend: LocalAttend, num_keys: int | None
) -> jax.Array:
    """Per device: trade heads for tokens, attend to all tokens for few heads, trade back.

    DeepSpeed Ulysses (Jacobs et al. 2023, arXiv:2309.14509). Takes and returns
    [batch, tokens / sp, heads, head_dim]. Query, key and value travel one by one: joined they would
    cost one more pass over all three in memory, and one can travel while the next is computed.
    """
    query, key, value = (_tokens_for_heads(x) for x in (query, key, value))
    # each [batch, tokens, heads / sp, head_dim]
    return _heads_for_tokens(attend(query, key, value, num_keys=num_keys))


def _tokens_for_heads(x: jax.Array) -> jax.Array:
    """Per device: [batch, tokens / sp, heads, head_dim] -> [batch, tokens, heads / sp, head_dim].

    What goes to (and comes from) one shard is made one block in memory, `[sp, batch, heads / sp,
    tokens / sp, head_dim]`: all-to-all along dimensions where they stand makes the TPU compiler
    copy more (6.1 against 5.3 GB per layer; 14B, 720p, dp2-sp4).
    """
    batch, tokens, heads, head_dim = x.shape
    ways = jax.lax.axis_size(SP)
    x = x.reshape(batch, tokens, ways, heads // ways, head_dim).transpose(2, 0, 3, 1, 4)
    x = jax.lax.all_to_all(x, SP, split_axis=0, concat_axis=0, tiled=True)
    # [shard of the tokens, batch, heads / sp, tokens / sp, head_dim]
    return x.transpose(1, 0, 3, 2, 4).reshape(batch, ways * tokens, heads // ways, head_dim)


def _heads_for_tokens(x: jax.Array) -> jax.Array:
    """Per device: `_tokens_for_heads` undone."""
    batch, tokens, heads, head_dim = x.shape
    ways = jax.lax.axis_size(SP)
    x = x.reshape(batch, ways, tokens // ways, heads, head_dim).transpose(1, 0, 3, 2, 4)
    x = jax.lax.all_to_all(x, SP, split_axis=0, concat_axis=0, tiled=True)
    # [shard of the heads, batch, heads / sp, tokens / sp, head_dim]
    return x.transpose(1, 3, 0, 2, 4).reshape(batch, tokens // ways, ways * heads, head_dim)


def _allgather(
    query: jax.Array, key: jax.Array, value: jax.Array, *, attend: LocalAttend, num_keys: int | None
) -> jax.Array:
    """Per device: gather every key and value, attend for the device's own queries.

    Takes and returns [batch, tokens / sp, heads, head_dim]; any number of heads.
    """
    key, value = (jax.lax.all_gather(x, SP, axis=1, tiled=True) for x in (key, value))
    # each [batch, tokens, heads, head_dim]
    return attend(query, key, value, num_keys=num_keys)


_SELF_ATTENTION: dict[str, Callable[..., jax.Array]] = {
    "ulysses": _ulysses,
    "allgather": _allgather,
    "ring": ring_attention,
}
"""By the names of `wan_tpu.sharding.layout.SEQUENCE_PARALLEL`."""


def _local_attend(mesh: Mesh, implementation: str) -> LocalAttend:
    """`attend` for the mesh's devices, not for this process's own."""
    device = mesh.devices.flat[0]
    return functools.partial(attend, implementation=implementation, device=device)


def _shard_map(
    per_device: Callable[..., jax.Array], mesh: Mesh, in_specs: tuple[PartitionSpec, ...]
):
    # check_vma: Pallas calls do not say over which axes their results vary.
    return jax.shard_map(
        per_device, mesh=mesh, in_specs=in_specs, out_specs=TOKENS_SPLIT, check_vma=False
    )


def _check(query: jax.Array, mesh: Mesh, layout: Layout) -> None:
    """Holds callers to their part; shapes were padded and layouts checked long before."""
    assert dict(mesh.shape) == {DP: layout.dp, SP: layout.sp, TP: layout.tp}, (
        mesh.shape,
        str(layout),
    )
    batch, tokens, heads, _ = query.shape
    split = (batch % layout.dp, tokens % layout.sp, heads % layout.tp)
    assert split == (0, 0, 0), f"{query.shape} does not divide over {layout}"
