"""Sizes of the tiles of flash attention's kernels, and those of the forward for given lengths."""

import dataclasses

from wan_tpu.geometry import ceil_to_multiple

LANES, SUBLANES = 128, 8
"""A TPU vector register of float32: kernels' tiles are multiples of its lanes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How the forward kernel works through a tile: unit by unit, all keys of a strip first.

    Attributes:
        strip: queries of a unit.
        unit: keys of a unit; where it divides those of a tile, else a unit has all of them.
        behind: units by which products with the values stand behind those for the scores; at most
            as many as a strip has.
        subtracts: whether the vector unit subtracts the reference from the scores, and not the
            matrix unit, by a feature more.
    """

    strip: int = 1024
    unit: int = 1024
    behind: int = 1
    subtracts: bool = False


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
        order: of the forward's products.
    """

    queries: int
    keys: int
    compute: int
    last_compute: int
    key_chunks: int = 1
    order: Order = Order()

    @property
    def all_keys(self) -> int:
        """Keys fetched at a time."""
        return self.key_chunks * self.keys

    @property
    def unit(self) -> int:
        """Keys of a unit of the order."""
        return min(self.order.unit, self.compute)

    @property
    def behind(self) -> int:
        """Units of the order's `behind`, of those that a strip has."""
        return min(self.order.behind, self.compute // self.unit)


COMPUTE, LAST_COMPUTE = 1024, 512
"""Keys of one product, for `choose_blocks`."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlockLimits:
    """What suits a chip: its order, and the largest blocks for its VMEM.

    Attributes:
        queries: of a block of 16-bit numbers; half as many of 32-bit ones.
        keys: likewise, over a block's chunks.
        vmem_bytes: what the kernel may take.
        order: of the forward's products.
    """

    queries: int
    keys: int
    vmem_bytes: int
    order: Order = Order()


_LARGE = BlockLimits(queries=9472, keys=37_888, vmem_bytes=100 << 20)
"""Of a chip with 128 MiB of VMEM."""

_HALF = BlockLimits(queries=4736, keys=18_944, vmem_bytes=56 << 20)
"""With 64 MiB."""

_NARROW = Order(subtracts=True)
"""Matrix units 128 wide have no idle rows: a further feature would be a second product."""

_INT8, _NARROW_INT8 = Order(strip=256), Order(strip=128, subtracts=True)
"""Products of int8 take half the time: exponentials, sums and both products are then at their
limits together, and units of one matrix unit's queries keep all of them busy all the time."""

CHIPS = {
    "TPU v6 lite": _LARGE,
    "TPU7x": dataclasses.replace(_HALF, order=Order(unit=512, subtracts=True)),
    "TPU v5 lite": dataclasses.replace(_LARGE, order=_NARROW),
    "TPU v5": dataclasses.replace(_HALF, order=_NARROW),
}
"""By `jax.Device.device_kind`. Each order is the one of fewest cycles of those counted for the chip
(benchmarks/results/2026-11-27-chips.md)."""


def block_limits(device_kind: str) -> BlockLimits:
    """By `jax.Device.device_kind`; a v6e's for a name that is not in `CHIPS`."""
    return CHIPS.get(device_kind, _LARGE)


def int8_block_limits(device_kind: str) -> BlockLimits:
    """`block_limits` where keys are of 8 bits: all of a 720p video are one block on a v6e."""
    limits = block_limits(device_kind)
    order = _NARROW_INT8 if limits.order.subtracts else _INT8
    return dataclasses.replace(limits, keys=2 * limits.keys, order=order)


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
        order=limits.order,
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
