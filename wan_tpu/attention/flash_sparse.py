"""Flash attention over some tiles of the keys: a list for each block of queries.

The kernel is `wan_tpu.attention.flash_kernel`, with a list in the place of its counter of tiles:
carried weights, the reference and the second attempt do not care which tile comes next. Keys and
values are still fetched whole, behind the products. What it costs and what is lost:
`benchmarks/results/2026-11-27-sparse-tiles.md`.

A library function: no pipeline calls it, and it has no derivative.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jaxtyping import Array, Float32, Int32

from wan_tpu.attention.arrays import Keys, Queries
from wan_tpu.attention.flash_blocks import COMPUTE, LANES, Blocks, block_limits, choose_blocks
from wan_tpu.attention.flash_forward import KERNEL_NAME, Kernel, flash_forward
from wan_tpu.attention.flash_kernel import Index, Step, scratch_shapes
from wan_tpu.attention.sparse_tiles import ActiveTiles
from wan_tpu.errors import InputError

_BEGINS, _WHOLE, _END, _TILES = 0, 1, 2, 3
"""What stands where in the numbers of a step: whether it is the first of its queries, how many
whole tiles it attends, whether the keys after the last whole one, and which tiles."""


def flash_sparse_attention(
    query: Queries,
    key: Keys,
    value: Keys,
    *,
    tiles: ActiveTiles,
    num_keys: int,
    interpret: bool,
    device_kind: str = "",
    blocks: Blocks | None = None,
) -> Queries:
    """softmax(query key^T / sqrt(head_dim)) value over the attended of the first `num_keys` keys.

    Args:
        query: [batch, queries, heads, head_dim].
        key: [batch, keys, heads, head_dim].
        value: like `key`.
        tiles: what each block of queries attends.
        num_keys: keys at this position and later are never attended, whatever they hold.
        interpret: run the kernel in Pallas' interpreter, on any platform.
        device_kind: of what will run it, as `jax.Device` says; a v6e when not given.
        blocks: sizes of the kernel's tiles; chosen for the chip and lengths when not given.

    Returns:
        Like `query`.

    Raises:
        InputError: the tiles are not those of these lengths, or of this kernel.
    """
    num_queries, head_dim = query.shape[1], query.shape[3]
    blocks = blocks or sparse_blocks(num_queries, key.shape[1], tiles, device_kind, query.dtype)
    _check(tiles, blocks, num_queries, num_keys)
    steps = step_numbers(tiles, blocks, key.shape[1], num_keys)
    arrays = (x.reshape(1, *x.shape[:2], -1) for x in (query, key, value))
    out, _ = flash_forward(
        *arrays,
        head_dim=head_dim,
        num_keys=num_keys,
        blocks=blocks,
        interpret=interpret,
        device_kind=device_kind,
        logsumexp=False,
        kernel=SPARSE,
        of_steps={"numbers": jnp.asarray(steps)},
    )
    return out.reshape(query.shape)


def sparse_blocks(
    num_queries: int, num_keys: int, tiles: ActiveTiles, device_kind: str, dtype: jnp.dtype
) -> Blocks:
    """Those of the dense kernel, but for the queries of a block."""
    limits, itemsize = block_limits(device_kind), jnp.dtype(dtype).itemsize
    limits = dataclasses.replace(limits, queries=tiles.queries * max(itemsize, 2) // 2)
    blocks = choose_blocks(num_queries, 1, num_keys, limits=limits, itemsize=itemsize)
    return dataclasses.replace(blocks, queries=tiles.queries)


def step_numbers(
    tiles: ActiveTiles, blocks: Blocks, num_keys: int, real_keys: int
) -> Int32[np.ndarray, "query_blocks key_blocks numbers"]:
    """What each step of the grid is told.

    Args:
        tiles: what is attended.
        blocks: sizes of the kernel's tiles.
        num_keys: keys, padding included.
        real_keys: those before the padding.
    """
    in_block = blocks.keys // blocks.compute  # whole tiles
    shape = len(tiles.active), -(-num_keys // blocks.keys), _TILES + in_block
    numbers = np.zeros(shape, np.int32)
    for block in range(shape[1]):
        real = min(max(real_keys - block * blocks.keys, 0), blocks.keys)
        whole, first = real // blocks.compute, block * in_block
        for active, step in zip(tiles.active, numbers[:, block], strict=True):
            found = np.flatnonzero(active[first : first + whole])
            step[_WHOLE], step[_TILES : _TILES + len(found)] = len(found), found
            step[_END] = real > whole * blocks.compute and active[first + whole]
    begins = (numbers[..., _WHOLE] + numbers[..., _END] > 0).argmax(axis=1)
    numbers[np.arange(len(begins)), begins, _BEGINS] = 1
    return numbers


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SparseStep(Step):
    """A step that attends the tiles of a list.

    Attributes:
        numbers: what the step is told, one at an index.
    """

    numbers: Callable[[Index], Any]

    def begins(self, block: Index) -> Any:
        """The first block of keys with anything to attend: its reference must be of such keys."""
        return self.numbers(_BEGINS) == 1

    def takes_part(self) -> Any:
        """Whether anything of the block is attended."""
        return self.numbers(_WHOLE) + self.numbers(_END) > 0

    def _whole_tiles(self, count: Index) -> tuple[Index, Callable[[Index], Index]]:
        """How many of the block's whole tiles, and which."""
        return self.numbers(_WHOLE), lambda index: self.numbers(_TILES + index)

    def _small_tiles(self, count: Index) -> Index:
        """How many of those after the whole ones: all or none."""
        return jnp.where(self.numbers(_END) == 1, count, 0)

    def _first_key(self) -> Index:
        """Where the first keys stand that are attended."""
        compute = self.blocks.compute
        tile = jnp.where(self.numbers(_WHOLE) > 0, self.numbers(_TILES), self.valid // compute)
        return tile * compute

    def _block_maximum(self) -> Float32[Array, "1 queries"]:
        """The largest score that is attended, or 0: the reference, if that is larger."""
        compute = self.blocks.compute
        count, tile = self._whole_tiles(0)
        done = self.valid // compute * compute

        def further(first: Index) -> Callable[[Index, Array], Array]:
            return lambda index, most: jnp.maximum(most, self._maximum(first + index * LANES))

        def of_tile(index: Index, most: Array) -> Array:
            return jax.lax.fori_loop(0, compute // LANES, further(tile(index) * compute), most)

        most = jax.lax.fori_loop(0, count, of_tile, jnp.zeros(self.reference.shape, jnp.float32))
        after = self._small_tiles(pl.cdiv(self.valid - done, LANES))
        return jax.lax.fori_loop(0, after, further(done), most)


SPARSE = Kernel(name=f"{KERNEL_NAME}_sparse", step=SparseStep, scratch_shapes=scratch_shapes)


def _check(tiles: ActiveTiles, blocks: Blocks, num_queries: int, num_keys: int) -> None:
    """Holds the tiles to the lengths and the kernel."""
    if tiles.keys != blocks.compute or blocks.compute == blocks.last_compute:
        raise InputError(
            f"tiles of {tiles.keys} keys for {num_keys} keys; flash attends tiles of {COMPUTE}, of "
            "at least as many"
        )
    if tiles.queries % LANES or tiles.queries != blocks.queries:
        raise InputError(f"blocks of {tiles.queries} queries; expected a multiple of {LANES}")
    expected = -(-num_queries // tiles.queries), -(-num_keys // tiles.keys)
    if tiles.active.shape != expected:
        raise InputError(
            f"active tiles {list(tiles.active.shape)} do not fit {num_queries} queries and "
            f"{num_keys} keys; expected {list(expected)}"
        )
