"""JAX's Pallas splash attention for TPU, with tiles chosen for the length and exact padding.

The kernel wants lengths that are multiples of its tiles, and 75,600 tokens (720p, 81 frames) are a
multiple of none that it takes. So lengths are padded and the padding keys are kept out, by the way
that costs the chip least. Cycles of one tile's body at head_dim 128, read from the compiler's own
schedule (one bundle is one cycle; 2026-11-21, jax 0.10.2, libtpu 0.0.42.1), queries/keys/compute:

| way of keeping padding out | v6e 2048/2048/1024 | v5e 2048/1024/256 |
|---|---|---|
| none: padding attended, wrong | 10,462 | 8,669 |
| segment ids | 11,865 +13.4% | 8,762 +1.1% |
| compare positions (`Padding.COMPARE`) | 11,713 +12.0% | 8,696 +0.3% |
| one more feature (`Padding.FEATURE`) | 10,557 +0.9% | 12,678 +46% |

A mask costs in every tile, not just in the last ones, for the kernel has no branch for full tiles.
The feature instead is 1 in queries and -1e30 in padding keys, so that the product itself puts the
scores out of reach: a 256 wide matrix unit has those rows free at head_dim 128, a 128 wide one pays
a second pass. (v5p is like v5e; tpu7x counts 10,555 with the feature, 12,038 comparing.)

Around the kernel, lengths that are not padded yet cost passes over memory: see
`wan_tpu.attention.sequence_parallel.padded_tokens`.
"""

import dataclasses
import enum

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jaxtyping import Array, Float

from wan_tpu.attention.arrays import Keys, LogSumExp, Queries
from wan_tpu.attention.flash_forward import LANES
from wan_tpu.geometry import ceil_to_multiple

PADDING_SCORE = -1e30
"""Score of a padding key: exp of it is 0, and sums with it stay finite in float32 and bfloat16."""

_TILE_OVERHEAD_ROWS = 70
"""A tile's cost besides its rows, counted in rows: 344 cycles, at 4.99 a row (v6e, 2048 keys)."""


class Padding(enum.Enum):
    """How padding keys are kept out of the softmax."""

    COMPARE = "compare"
    FEATURE = "feature"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KeyTile:
    """One way of tiling the keys.

    Attributes:
        block: keys fetched at a time.
        compute: keys of one product; divides `block`.
        cost: bundles per (query, key) pair, in thousandths, at 2048 query rows.
    """

    block: int
    compute: int
    cost: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChipTiles:
    """What suits a generation of chips.

    Attributes:
        max_query_block: most query rows of a tile; a multiple of 128.
        key_tiles: to choose from for the length.
        padding: the cheaper way for this matrix unit.
    """

    max_query_block: int
    key_tiles: tuple[KeyTile, ...]
    padding: Padding


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """Tiles for given lengths: block sizes, and the lengths padded to them."""

    query_block: int
    key_tile: KeyTile
    padded_queries: int
    padded_keys: int


WIDE_TILES = ChipTiles(
    max_query_block=2048,
    key_tiles=(
        KeyTile(block=2048, compute=1024, cost=2.52),
        KeyTile(block=1024, compute=1024, cost=2.72),
        KeyTile(block=512, compute=512, cost=2.84),
        KeyTile(block=256, compute=256, cost=3.14),
        KeyTile(block=128, compute=128, cost=4.5),
    ),
    padding=Padding.FEATURE,
)
"""Matrix units of 256 x 256 (v6e, tpu7x), counted on v6e."""

NARROW_TILES = ChipTiles(
    max_query_block=2048,
    key_tiles=(
        KeyTile(block=1024, compute=256, cost=4.15),
        KeyTile(block=512, compute=256, cost=4.42),
        KeyTile(block=256, compute=256, cost=4.6),
        KeyTile(block=128, compute=128, cost=5.9),
    ),
    padding=Padding.COMPARE,
)
"""Matrix units of 128 x 128 and 16 MiB of VMEM a kernel (v4, v5e, v5p), counted on v5e; an unknown
chip gets these, which compile for every one."""

WIDE_CHIPS = ("TPU v6 lite", "TPU7x")


def tiles_for(device_kind: str) -> ChipTiles:
    """The tiles for a chip, by `jax.Device.device_kind`."""
    return WIDE_TILES if device_kind in WIDE_CHIPS else NARROW_TILES


def choose_tiling(num_queries: int, num_keys: int, tiles: ChipTiles) -> Tiling:
    """The tiling with the least cycles: little padding against cheap tiles."""
    query_block = min(
        range(LANES, tiles.max_query_block + 1, LANES),
        key=lambda block: -(-num_queries // block) * (block + _TILE_OVERHEAD_ROWS),
    )
    key_tile = min(
        tiles.key_tiles, key=lambda tile: ceil_to_multiple(num_keys, tile.block) * tile.cost
    )
    return Tiling(
        query_block=query_block,
        key_tile=key_tile,
        padded_queries=ceil_to_multiple(num_queries, query_block),
        padded_keys=ceil_to_multiple(num_keys, key_tile.block),
    )


def padded_length(num_tokens: int, tiles: ChipTiles) -> int:
    """The length of self-attention at which `splash_attention` has least left to pad."""
    tiling = choose_tiling(num_tokens, num_tokens, tiles)
    return max(tiling.padded_queries, tiling.padded_keys)


def splash_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    *,
    num_keys: int,
    tiles: ChipTiles,
    interpret: bool,
) -> Queries:
    """Attention by JAX's splash kernel.

    Args:
        query: [batch, queries, heads, head_dim].
        key: [batch, keys, heads, head_dim].
        value: [batch, keys, heads, head_dim].
        num_keys: the keys before this position are attended; the others may hold anything.
        tiles: of the chip that will run it.
        interpret: run the kernel in Pallas' interpreter, on any platform.

    Returns:
        [batch, queries, heads, head_dim] in the query's dtype.
    """
    out, _ = _attention(
        query, key, value,
        num_keys=num_keys, tiles=tiles, interpret=interpret, save_residuals=False,
    )  # fmt: skip
    return out


def splash_with_logsumexp(
    query: Queries,
    key: Keys,
    value: Keys,
    *,
    num_keys: int,
    tiles: ChipTiles,
    interpret: bool,
) -> tuple[Queries, LogSumExp]:
    """`splash_attention`, and the logsumexp of each query's scores.

    Returns:
        [batch, queries, heads, head_dim] in the query's dtype; [batch, heads, queries] float32.
    """
    out, residuals = _attention(
        query, key, value,
        num_keys=num_keys, tiles=tiles, interpret=interpret, save_residuals=True,
    )  # fmt: skip
    (logsumexp,) = residuals  # [batch * heads, padded queries]
    batch, num_queries, heads, _ = query.shape
    return out, logsumexp.reshape(batch, heads, -1)[:, :, :num_queries]


def _attention(
    query: Queries,
    key: Keys,
    value: Keys,
    *,
    num_keys: int,
    tiles: ChipTiles,
    interpret: bool,
    save_residuals: bool,
) -> tuple[Queries, tuple[Array, ...]]:
    """Around the kernel: attention, and what the kernel saves besides."""
    batch, num_queries, heads, head_dim = query.shape
    tiling = choose_tiling(num_queries, num_keys, tiles)
    # The kernel does not scale. Scaling scores would cost a vector operation per (query, key) pair,
    # so an operand is scaled, in float32 and rounded once: the key, which is rewritten anyway when
    # it is padded, and which is short in cross-attention.
    key = (key.astype(jnp.float32) * head_dim**-0.5).astype(key.dtype)
    key, value = (_only_real(x, num_keys, tiling.padded_keys) for x in (key, value))
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    # each [batch, heads, length, head_dim]

    padded = tiling.padded_keys > num_keys
    if padded and tiles.padding is Padding.FEATURE:
        features = ceil_to_multiple(head_dim + 1, LANES)
        query = _pad(query, tiling.padded_queries, features, fill=1)
        key = _set_feature(_pad(key, tiling.padded_keys, features), num_keys, head_dim)
    else:
        query = _pad(query, tiling.padded_queries, head_dim)
        key = _pad(key, tiling.padded_keys, head_dim)
    value = _pad(value, tiling.padded_keys, head_dim)

    # Batch items are as good as heads to the kernel; a vmap would add a dimension to its grid.
    query, key, value = (x.reshape(batch * heads, *x.shape[2:]) for x in (query, key, value))
    compared = num_keys if padded and tiles.padding is Padding.COMPARE else None
    result = _kernel(batch * heads, tiling, compared, interpret, save_residuals)(query, key, value)
    out, residuals = result if save_residuals else (result, ())
    assert isinstance(out, jax.Array)
    out = out.reshape(batch, heads, tiling.padded_queries, head_dim)[:, :, :num_queries]
    return out.swapaxes(1, 2), residuals  # [batch, queries, heads, head_dim]


def _only_real(x: Keys, num_real: int, padded: int) -> Float[Array, "batch length heads head_dim"]:
    """Takes what stands at `num_real` and later out of [batch, length, heads, head_dim].

    Where the length reaches `padded`, zeros overwrite it (an elementwise pass that the compiler
    joins with its neighbours); where it does not, it is cut off.
    """
    if x.shape[1] < padded:
        return x[:, :num_real]
    x = x[:, :padded]
    if num_real == padded:
        return x
    position = jax.lax.broadcasted_iota(jnp.int32, (1, padded, 1, 1), 1)
    return jnp.where(position < num_real, x, 0)


def _pad(
    x: Float[Array, "batch heads tokens head_dim"], length: int, features: int, fill: float = 0
) -> Float[Array, "batch heads {length} {features}"]:
    """[batch, heads, tokens, head_dim] -> [batch, heads, length, features], in one pass."""
    widths = ((0, 0), (0, 0), (0, length - x.shape[2]), (0, features - x.shape[3]))
    return jnp.pad(x, widths, constant_values=fill)


def _set_feature(
    key: Float[Array, "batch heads keys features"], num_keys: int, feature: int
) -> Float[Array, "batch heads keys features"]:
    """Sets one feature of padding keys to `PADDING_SCORE`; the queries' are 1 there.

    Args:
        key: [batch, heads, padded keys, features], zeros in that feature.
        num_keys: real keys.
        feature: which.
    """
    is_padding = jax.lax.broadcasted_iota(jnp.int32, key.shape, 2) >= num_keys
    is_feature = jax.lax.broadcasted_iota(jnp.int32, key.shape, 3) == feature
    return jnp.where(is_padding & is_feature, jnp.asarray(PADDING_SCORE, key.dtype), key)


def _kernel(
    num_heads: int,
    tiling: Tiling,
    compared: int | None,
    interpret: bool,
    save_residuals: bool = False,
) -> splash_kernel.SplashAttentionKernel:
    """The kernel for [num_heads, padded length, features].

    Args:
        num_heads: batch * heads.
        tiling: tiles and padded lengths.
        compared: attend to keys before this position by comparing positions; to all when None.
        interpret: run it in Pallas' interpreter.
        save_residuals: give the logsumexp, too.
    """
    shape = (tiling.padded_queries, tiling.padded_keys)
    mask = _AllKeys(shape) if compared is None else _FirstKeys(shape, compared)
    return splash_kernel.make_splash_mha(
        mask=splash_mask.MultiHeadMask([mask] * num_heads),
        block_sizes=splash_kernel.BlockSizes(
            block_q=tiling.query_block,
            block_kv=tiling.key_tile.block,
            block_kv_compute=tiling.key_tile.compute,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
        save_residuals=save_residuals,
    )


@dataclasses.dataclass(frozen=True)
class _AllKeys(splash_mask.Mask):
    """Every query attends to every key.

    A slice answers one row for all its rows, since they are alike: splash asks only whether any or
    all of a tile is set. Its own FullMask makes every tile, 1.3 s against 0.05 s for 75,600 tokens.
    """

    mask_shape: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mask_shape

    def __getitem__(self, idx: tuple[slice, slice]) -> np.ndarray:
        keys = idx[1]
        return np.ones((1, keys.stop - keys.start), np.bool_)


@dataclasses.dataclass(frozen=True)
class _FirstKeys(splash_mask.Mask):
    """Every query attends to the keys before `num_keys`; the kernel computes it from positions."""

    mask_shape: tuple[int, int]
    num_keys: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.mask_shape

    def __getitem__(self, idx: tuple[slice, slice]) -> np.ndarray:
        keys = idx[1]
        return np.arange(keys.start, keys.stop)[None] < self.num_keys

    @property
    def q_sequence(self) -> np.ndarray:
        """Positions of the queries, which splash hands to `mask_function`; not used there."""
        return np.zeros(self.mask_shape[0], np.int32)

    @property
    def mask_function(self) -> "_KeysBefore":
        """What the kernel calls on positions."""
        return _KeysBefore(self.num_keys)


@dataclasses.dataclass(frozen=True)
class _KeysBefore:
    """Tells which positions of a tile, [rows, keys] int32, are before `num_keys`.

    A value and not a closure, so that equal ones are traced once.
    """

    num_keys: int

    def __call__(self, _query_positions: Array, key_positions: Array) -> Array:
        return key_positions < self.num_keys
