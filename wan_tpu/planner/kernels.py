"""What decides the cycles of an attention kernel, and the arithmetic from a part's cycles to all.

Knows the tiles of `wan_tpu.attention.flash_kernel`, `flash_short` and `flash_backward`, but neither
compiles nor reads a schedule: that is `kernel_cycles.py`.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax.numpy as jnp

from wan_tpu.attention.flash_backward import choose_backward_blocks
from wan_tpu.attention.flash_blocks import (
    Blocks,
    block_limits,
    choose_blocks,
    int8_block_limits,
    valid_keys,
)
from wan_tpu.attention.flash_short import short_block, takes
from wan_tpu.attention.names import FLASH, FLASH_INT8
from wan_tpu.planner.hardware import CHIPS

OWN = (FLASH, FLASH_INT8)
"""Our own kernels' implementations; their schedules have the same parts."""

LEAST_BLOCKS = 2
"""Blocks, and chunks, from which on more of them are the same program with another loop count."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelCycles:
    """The count for one head of attention.

    Attributes:
        parts: bundles of each part of the schedule, and how often it runs.
    """

    parts: Mapping[str, tuple[int, int]]

    @property
    def per_head(self) -> int:
        """Cycles for one head on one core."""
        return sum(bundles * times for bundles, times in self.parts.values())

    def of(self, shape: "KernelShape") -> "KernelCycles":
        """The count of another shape with the same parts (`KernelShape.smallest_alike`)."""
        if shape.implementation not in OWN:
            return self
        if shape.is_short:
            times = short_times(shape)
        else:
            times = backward_times(shape) if shape.is_backward else flash_times(shape)
        return KernelCycles(
            parts={name: (bundles, times[name]) for name, (bundles, _) in self.parts.items()}
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KernelShape:
    """What decides the kernel: the chip, the implementation and the lengths of one head.

    Attributes:
        chip: name in `hardware.CHIPS`.
        implementation: one of `wan_tpu.attention.names.IMPLEMENTATIONS`.
        queries: tokens.
        keys: tokens, padding included.
        num_keys: real keys.
        head_dim: features.
        query_chunks: chunks that the queries come in.
        key_chunks: likewise.
        dtype: of all three.
        is_backward: whether it is the gradient's kernel.
        tiles: of our own forward kernel, where they are not those chosen for the lengths.
    """

    chip: str
    implementation: str
    queries: int
    keys: int
    num_keys: int
    head_dim: int
    query_chunks: int = 1
    key_chunks: int = 1
    dtype: str = "bfloat16"
    is_backward: bool = False
    tiles: Blocks | None = None

    @property
    def query_chunk(self) -> int:
        """Queries of a chunk."""
        return self.queries // self.query_chunks

    @property
    def key_chunk(self) -> int:
        """Keys of a chunk, padding included."""
        return self.keys // self.key_chunks

    @property
    def blocks(self) -> Blocks:
        """Tiles of our own kernel."""
        limits = int8_block_limits if self.implementation == FLASH_INT8 else block_limits
        return self.tiles or choose_blocks(
            self.query_chunk,
            self.key_chunks,
            self.key_chunk,
            limits=limits(CHIPS[self.chip].device_kind),
            itemsize=jnp.dtype(self.dtype).itemsize,
        )

    @property
    def is_short(self) -> bool:
        """Whether it is the forward kernel for few keys."""
        few = takes(self.key_chunks, self.key_chunk) and self.tiles is None
        return few and self.implementation == FLASH and not self.is_backward

    @property
    def _short_block(self) -> int:
        """Queries of a block of the kernel for few keys."""
        return short_block(
            self.query_chunk,
            device_kind=CHIPS[self.chip].device_kind,
            itemsize=jnp.dtype(self.dtype).itemsize,
        )

    @property
    def short_steps(self) -> int:
        """Steps of the grid of the kernel for few keys, for one head."""
        return self.query_chunks * math.ceil(self.query_chunk / self._short_block)

    @property
    def backward_blocks(self) -> Blocks:
        """Tiles of the flash kernel's gradient."""
        itemsize = jnp.dtype(self.dtype).itemsize
        return choose_backward_blocks(self.query_chunk, self.key_chunk, itemsize)

    def smallest_alike(self) -> "KernelShape":
        """The shortest shape whose schedule has the same parts, each with the same bundles.

        The bundles depend on the tiles alone, not on the chunks that keys come in, so the layouts
        of a plan share their counts. There are two blocks of queries and two of keys: with one of
        keys in all the compiler resolves branches, and the schedule has another form. Splash is
        counted as it is.
        """
        if self.implementation not in OWN:
            return self
        if self.is_backward:
            return self._smallest_backward()
        if self.is_short:
            queries = LEAST_BLOCKS * self._short_block
            return dataclasses.replace(self, queries=queries, query_chunks=LEAST_BLOCKS)
        blocks = self.blocks
        blocks = dataclasses.replace(blocks, keys=blocks.all_keys, key_chunks=1)
        keys = LEAST_BLOCKS * blocks.keys
        return dataclasses.replace(
            self,
            queries=LEAST_BLOCKS * blocks.queries,
            query_chunks=LEAST_BLOCKS,
            keys=keys,
            key_chunks=LEAST_BLOCKS,
            num_keys=keys - 1,
            tiles=blocks,
        )

    def _smallest_backward(self) -> "KernelShape":
        """Two chunks of both: its blocks follow from a chunk's length, which stays."""
        keys = LEAST_BLOCKS * self.key_chunk
        return dataclasses.replace(
            self,
            queries=LEAST_BLOCKS * self.query_chunk,
            query_chunks=LEAST_BLOCKS,
            keys=keys,
            key_chunks=LEAST_BLOCKS,
            num_keys=keys - (self.keys - self.num_keys) % self.key_chunk,
        )


def short_times(shape: KernelShape) -> dict[str, int]:
    """How often each part of the kernel for few keys runs for one head: it has one."""
    return {"block of queries": shape.short_steps}


def flash_times(shape: KernelShape) -> dict[str, int]:
    """How often each part of our own kernel runs for one head."""
    blocks = shape.blocks
    rows = shape.query_chunks * math.ceil(shape.query_chunk / blocks.queries)
    key_shape = (shape.key_chunks, 1, shape.key_chunk, shape.head_dim)
    left = valid_keys(key_shape, shape.num_keys, blocks)
    with_keys = rows * sum(valid > 0 for valid in left)
    times = {"block of queries": rows, "step": rows * len(left), "block of keys": with_keys}
    return times | _tile_times(left, rows, blocks)


def backward_times(shape: KernelShape) -> dict[str, int]:
    """How often each part of our own backward kernel runs for one head."""
    blocks = shape.backward_blocks
    rows = shape.query_chunks * math.ceil(shape.query_chunk / blocks.queries)
    left = [
        min(
            max(min(shape.key_chunk, shape.num_keys - index * shape.key_chunk) - start, 0),
            blocks.keys,
        )
        for index in range(shape.key_chunks)
        for start in range(0, shape.key_chunk, blocks.keys)
    ]
    times = {
        "step": rows * len(left),
        "block of keys": len(left),
        "sums of a block": rows * (len(left) - 1),
        "block of queries": rows,
    }
    return times | _tile_times(left, rows, blocks)


def _tile_times(left: list[int], rows: int, blocks: Blocks) -> dict[str, int]:
    """How often each tile runs for blocks of keys with so many real ones, in each of the rows."""
    times = {}
    *larger, smallest = tile_sizes(blocks)
    for size in larger:
        times[tile_name(size)] = rows * sum(valid // size for valid in left)
        left = [valid % size for valid in left]
    return times | {tile_name(smallest): rows * sum(-(-valid // smallest) for valid in left)}


def tile_sizes(blocks: Blocks) -> list[int]:
    """Keys of the products in a block of keys, largest first."""
    return list(dict.fromkeys((blocks.compute, blocks.last_compute)))


def tile_name(size: int) -> str:
    """The part of the schedule that is one product."""
    return f"tile of {size} keys"
