"""Tiles of splash's kernels: for the chip, for the lengths, and the lengths padded to them."""

import dataclasses

from wan_tpu.attention.flash_blocks import LANES
from wan_tpu.attention.splash_padding import Padding
from wan_tpu.geometry import ceil_to_multiple

_TILE_OVERHEAD_ROWS = 70
"""A tile's cost besides its rows, counted in rows: 344 cycles, at 4.99 a row (v6e, 2048 keys)."""


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
class Tiles:
    """Tiles of a kernel to choose from for the lengths.

    Attributes:
        max_query_block: most query rows of a tile; a multiple of 128.
        key_tiles: of the keys.
    """

    max_query_block: int
    key_tiles: tuple[KeyTile, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChipTiles(Tiles):
    """What suits a generation of chips: tiles of the forward, and further

    Attributes:
        padding: the cheaper way for this matrix unit.
        backward: tiles of the backward.
    """

    padding: Padding
    backward: Tiles


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """Tiles for given lengths: block sizes, and the lengths padded to them."""

    query_block: int
    key_tile: KeyTile
    padded_queries: int
    padded_keys: int


WIDE_BACKWARD = Tiles(
    max_query_block=2048,
    key_tiles=(
        KeyTile(block=2048, compute=512, cost=5.64),
        KeyTile(block=1024, compute=512, cost=5.75),
        KeyTile(block=512, compute=512, cost=5.85),
        KeyTile(block=256, compute=256, cost=6.54),
        KeyTile(block=128, compute=128, cost=7.69),
    ),
)
"""Of the fused backward kernel, counted on v6e; they fit its memory in float32, too."""

NARROW_BACKWARD = Tiles(
    max_query_block=1024,
    key_tiles=(
        KeyTile(block=1024, compute=512, cost=9.87),
        KeyTile(block=512, compute=512, cost=9.94),
        KeyTile(block=256, compute=256, cost=10.86),
        KeyTile(block=128, compute=128, cost=12.63),
    ),
)
"""Likewise, counted on v5e; 2048 queries would take 4% less, with little memory left."""

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
    backward=WIDE_BACKWARD,
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
    backward=NARROW_BACKWARD,
)
"""Matrix units of 128 x 128 and 16 MiB of VMEM a kernel (v4, v5e, v5p), counted on v5e; an unknown
chip gets these, which compile for every one."""

WIDE_CHIPS = ("TPU v6 lite", "TPU7x")


def tiles_for(device_kind: str) -> ChipTiles:
    """The tiles for a chip, by `jax.Device.device_kind`."""
    return WIDE_TILES if device_kind in WIDE_CHIPS else NARROW_TILES


def choose_tiling(num_queries: int, num_keys: int, tiles: Tiles) -> Tiling:
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
