"""Which tiles of keys each block of queries attends: sliding tiles (Zhang et al. 2025).

"Fast Video Generation with Sliding Tile Attention", arXiv:2502.04507: attention in videos falls off
with distance, so a token attends the cubes of tokens around its own and no others. Tokens of a cube
come one after the other (`cube_order`), so that what a block of queries attends are whole tiles of
keys, which `wan_tpu.attention.flash_sparse` then computes alone. Cubes need not divide the video,
nor be as long as a tile: a tile is attended if any pair of its keys and the block's queries is.

Knows no kernel and no device; numpy only.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Bool, Int

from wan_tpu.errors import InputError

Grid = tuple[int, int, int]
"""Frames, rows and columns: of tokens, or of cubes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ActiveTiles:
    """What is attended, the same for all heads and batch items.

    Attributes:
        queries: of a block, the last one may have fewer.
        keys: of a tile, likewise.
        active: [blocks of queries, tiles of keys], whether it is attended.

    Raises:
        InputError: a block of queries attends nothing.
    """

    queries: int
    keys: int
    active: Bool[np.ndarray, "blocks tiles"]

    def __post_init__(self) -> None:
        idle = np.flatnonzero(~self.active.any(axis=1))
        if len(idle):
            raise InputError(
                f"block {idle[0]} of {len(self.active)} blocks of queries attends no tile of keys; "
                "each needs one, for example that of its own tokens"
            )

    @property
    def share(self) -> float:
        """Of all tiles, those that are attended."""
        return float(self.active.mean())

    def mask(self, num_queries: int, num_keys: int) -> Bool[np.ndarray, "queries keys"]:
        """Of tokens, as the kernel attends them."""
        rows = np.arange(num_queries) // self.queries
        return self.active[rows][:, np.arange(num_keys) // self.keys]


def cube_order(grid: Grid, cube: Grid) -> Int[np.ndarray, " tokens"]:
    """Positions of the tokens (frames, rows, columns) in the order of their cubes.

    `tokens[cube_order(...)]` is what `sliding_tiles` is for; `np.argsort` of it is the way back.

    Args:
        grid: tokens of a video.
        cube: tokens of a cube; those at the end may be smaller.
    """
    return np.argsort(_cubes(grid, cube), kind="stable")


def sliding_tiles(
    grid: Grid, *, cube: Grid, window: Grid, queries: int, keys: int = 1024
) -> ActiveTiles:
    """Each token attends the cubes of a window around its own, moved inwards at the video's edges.

    Args:
        grid: tokens of a video, ordered by `cube_order`.
        cube: tokens of a cube.
        window: cubes attended along each axis; all, where the video has fewer.
        queries: of a block; a multiple of 128.
        keys: of a tile; `flash_sparse` takes tiles of 1,024.

    Raises:
        InputError: a size below 1.
    """
    if min(*grid, *cube, *window, queries, keys) < 1:
        raise InputError(
            f"sizes of sliding tiles must be at least 1, got grid {grid}, cube {cube}, window "
            f"{window}, {queries} queries, {keys} keys; for example cube 3,15,20, window 3,3,3"
        )
    counts = _count(grid, cube)
    places = np.stack(np.unravel_index(np.arange(math.prod(counts)), counts), axis=1)
    attended = np.ones((len(places), len(places)), bool)
    for axis, (count, size) in enumerate(zip(counts, window, strict=True)):
        size = min(size, count)
        first = np.clip(places[:, axis] - size // 2, 0, count - size)[:, None]
        attended &= (places[:, axis] >= first) & (places[:, axis] < first + size)
    tokens = np.sort(_cubes(grid, cube))
    blocks, tiles = _contains(tokens, queries, len(places)), _contains(tokens, keys, len(places))
    return ActiveTiles(queries=queries, keys=keys, active=(blocks @ attended @ tiles.T) > 0)


def _count(grid: Grid, cube: Grid) -> Grid:
    """Cubes along each axis."""
    frames, rows, columns = (-(-length // size) for length, size in zip(grid, cube, strict=True))
    return frames, rows, columns


def _cubes(grid: Grid, cube: Grid) -> Int[np.ndarray, " tokens"]:
    """The cube of each token."""
    places = np.indices(grid).reshape(3, -1) // np.array(cube)[:, None]
    return np.asarray(np.ravel_multi_index(tuple(places), _count(grid, cube)))


def _contains(
    cubes: Int[np.ndarray, " tokens"], size: int, count: int
) -> Int[np.ndarray, "parts cubes"]:
    """1 for each part of `size` tokens and each cube that has a token there."""
    found = np.zeros((-(-len(cubes) // size), count), int)
    found[np.arange(len(cubes)) // size, cubes] = 1
    return found
