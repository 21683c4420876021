"""Sizes of the tiles of flash attention's kernels, and those of the forward for given lengths."""

import dataclasses

from wan_tpu.geometry import ceil_to_multiple

LANES, SUBLANES = 128, 8
"""A TPU vector register of float32: kernels' tiles are multiples of its lanes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Sizes of a kernel's tiles, forward or backward, multiples of `LANES`.

    Attributes:
        queries: rows of queries held at a time.
        keys: keys of a chunk fetched at a time.
        compute: keys of one product.
        last_compute: keys of one product at the end of a block, where `compute` does not fit;
            divides the others.
        key_chunks: chunks of keys fetched at a time; more than one only where `keys` is all of a
            chunk.
    """

    queries: int
    keys: int
    compute: int
    last_compute: int
    key_chunks: int = 1

    @property
    def all_keys(self) -> int:
        """Keys fetched at a time."""
        return self.key_chunks * self.keys


COMPUTE, LAST_COMPUTE = 1024, 512
"""Keys of one product, for `choose_blocks`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlockLimits:
    """The largest blocks of 16-bit numbers for a chip's VMEM; of 32-bit ones half as large.

    Attributes:
        queries: of a block.
        keys: of a block, over its chunks.
        vmem_bytes: what the kernel may take.
    """

    queries: int
    keys: int
    vmem_bytes: int


_OF_128_MIB = BlockLimits(queries=9472, keys=37_888, vmem_bytes=100 << 20)
_OF_64_MIB = BlockLimits(queries=4736, keys=18_944, vmem_bytes=56 << 20)


def block_limits(device_kind: str) -> BlockLimits:
    """By `jax.Device.device_kind`; a v6e's for a name that is no TPU's."""
    return _OF_64_MIB if device_kind in ("TPU v5", "TPU7x") else _OF_128_MIB


def choose_blocks(
    query_chunk: int, key_chunks: int, key_chunk: int, *, limits: BlockLimits, itemsize: int = 2
) -> Blocks:
    """Blocks for given lengths of a chunk: little beyond the end, few and even steps.

    Args:
        query_chunk: queries of a chunk.
        key_chunks: chunks of keys.
        key_chunk: keys of a chunk.
        limits: of the chip.
        itemsize: bytes of a number.
    """
    most_queries, most_keys = (x * 2 // max(itemsize, 2) for x in (limits.queries, limits.keys))
    query_blocks = -(-query_chunk // most_queries)
    last_compute = min(LAST_COMPUTE, ceil_to_multiple(key_chunk, LANES))
    merged = -(-key_chunks // -(-key_chunks * key_chunk // most_keys))
    if merged > 1 and merged * key_chunk % last_compute == 0:
        keys = key_chunk
    else:
        merged, key_blocks = 1, -(-key_chunk // most_keys)
        step = COMPUTE if key_blocks > 1 else last_compute
        keys = ceil_to_multiple(-(-key_chunk // key_blocks), step)
    return Blocks(
        queries=ceil_to_multiple(-(-query_chunk // query_blocks), LANES),
        keys=keys,
        compute=COMPUTE if merged * keys >= COMPUTE else last_compute,
        last_compute=last_compute,
        key_chunks=merged,
    )


def valid_keys(shape: tuple[int, int, int, int], num_keys: int, blocks: Blocks) -> list[int]:
    """Real keys of each block of keys [chunks, batch, chunk, channels], in the kernel's order."""
    chunks, _, chunk, _ = shape
    length = blocks.key_chunks * chunk
    return [
        min(max(min(length, num_keys - index * chunk) - start, 0), blocks.all_keys)
        for index in range(0, chunks, blocks.key_chunks)
        for start in range(0, length, blocks.all_keys)
    ]
