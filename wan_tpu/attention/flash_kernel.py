"""The body of flash attention's forward kernel, and the order in which it works.

A tile of 1,024 keys meets the block's queries unit by unit (`Order`): all keys of a strip of
queries, then the next strip. A unit is a product for the scores (less the reference, see
`wan_tpu.attention.flash_forward`), an exponential each, and a product with the values. That second
product stands behind the scores and exponentials of the next unit: so the matrix unit never waits
for the exponential unit, and both are busy all the time. A loop's body is one piece for the
compiler, and nothing moves over its end. So the weights of a tile's last units stay in VMEM
(`carried`), and their product is made among the scores of the next tile's first ones.

Values are turned once a tile, not in every strip: transposes leave through the same slots as the
products' results do. Weights are added in pairs in the inputs' dtype, then in float32: half of the
vector unit's additions.

Cycles per (query, key) pair x 1e-3 of a whole tile of 9,472 queries, read from the compiler's
schedule for v6e (2026-11-27, jax 0.10.2, libtpu 0.0.42.1): 1.48, where 1.46 keeps the matrix unit
busy in every cycle; without carrying, turning and pairs, 4,736 queries, 1.61. What was tried:
`benchmarks/results/2026-11-27-flash-order.md`, and for other chips `2026-11-27-chips.md` there.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int32

from wan_tpu.attention.flash_blocks import LANES, SUBLANES, Blocks

SUMMED = 2
"""Weights added up in their own dtype before float32: of bfloat16, 2^-9 of each such sum is lost,
at random, as of each weight itself."""

SUM_LIMIT = 2.0**64
"""A block whose sum of weights grows past this, or is not a number, is done again.

Far from float32's 2^128, for values are multiplied by the weights and summed, too.
"""

_EXCLUDED = -1e30
"""Score of a key that is none: its weight is 0."""

Index = int | Int32[Array, ""]


def scratch_shapes(blocks: Blocks, head_dim: int, dtype: jnp.dtype) -> dict[str, Any]:
    """What the kernel holds beside its blocks; `Step` says what each is."""
    per_query = functools.partial(pltpu.VMEM, dtype=jnp.float32)
    order = blocks.order
    features = head_dim + (0 if order.subtracts else LANES)
    carried = (blocks.behind * blocks.unit, min(order.strip, blocks.queries))
    return {
        "query_t": pltpu.VMEM((features, blocks.queries), dtype),
        "value_t": pltpu.VMEM((head_dim, blocks.compute), dtype),
        "carried": pltpu.VMEM(carried, dtype),
        "block_values": per_query((head_dim, blocks.queries)),
        "block_sums": per_query((SUBLANES, blocks.queries)),
        "values": per_query((head_dim, blocks.queries)),
        "sums": per_query((1, blocks.queries)),
        "reference": per_query((1, blocks.queries)),
    }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the grid: a block of queries against a block of keys.

    Attributes:
        query: [queries, head_dim].
        key: [keys, head_dim].
        value: like `key`.
        valid: keys of the block that are real, the first ones.
        blocks: sizes.
        query_t: [head_dim + LANES, queries], scaled; row head_dim is minus the reference. Without
            these further rows where the vector unit subtracts it.
        value_t: [head_dim, keys of a tile].
        carried: [keys of the units behind, queries of a strip], weights of a tile's last units.
        block_values: [head_dim, queries], float32: sum of weights * value over this block.
        block_sums: [SUBLANES, queries], float32: sums of the weights, not yet over sublanes.
        values: [head_dim, queries], float32: like `block_values`, over the blocks before.
        sums: [1, queries], float32: likewise.
        reference: [1, queries], float32, of base 2; a bfloat16 number, so that `query_t` holds it.
    """

    query: Any
    key: Any
    value: Any
    valid: Index
    blocks: Blocks
    query_t: Any
    value_t: Any
    carried: Any
    block_values: Any
    block_sums: Any
    values: Any
    sums: Any
    reference: Any

    def begins(self, block: Index) -> Any:
        """Whether the block of keys of this number is the first that these queries attend."""
        return block == 0

    def takes_part(self) -> Any:
        """Whether anything of the block of keys is attended."""
        return self.valid > 0

    def start(self) -> None:
        """Takes a new block of queries; the reference is the maximum over a few keys."""
        head_dim = self.query.shape[-1]
        scaled = self.query[...].astype(jnp.float32) * (head_dim**-0.5 * math.log2(math.e))
        self.query_t[pl.ds(0, head_dim), :] = scaled.T.astype(self.query_t.dtype)
        self._start_reference()
        self._set_reference(self._maximum(self._first_key()))
        self.values[...] = jnp.zeros_like(self.values)
        self.sums[...] = jnp.zeros_like(self.sums)

    def _start_reference(self) -> None:
        """Nothing is subtracted from the scores until there is a reference."""
        if self.blocks.order.subtracts:
            self.reference[...] = jnp.zeros_like(self.reference)
        else:
            nothing = jnp.zeros((LANES, self.blocks.queries), self.query_t.dtype)
            self.query_t[pl.ds(self.query.shape[-1], LANES), :] = nothing

    def attend(self) -> None:
        """Takes the block of keys into `values`, `sums` and `reference`."""
        jax.lax.while_loop(lambda attempts: attempts < 2, self._attempt, 0)
        sums = self.sums[...] + self.block_sums[...].sum(0, keepdims=True)
        change = self._set_reference(self.reference[...] + jnp.log2(sums))
        self.values[...] = (self.values[...] + self.block_values[...]) * change
        self.sums[...] = sums * change

    def result(self) -> tuple[Float32[Array, "queries head_dim"], Float32[Array, "1 queries"]]:
        """Attention over the keys so far, and the logsumexp of their scores."""
        logsumexp = (self.reference[...] + jnp.log2(self.sums[...])) * math.log(2)
        return (self.values[...] / self.sums[...]).T, logsumexp

    def _attempt(self, attempts: Index) -> Index:
        """Sums the block; if it overflows, moves the reference and asks for one attempt more."""
        self._attend_block()
        in_range = jnp.all(self.block_sums[...].sum(0) < SUM_LIMIT)

        @pl.when(jnp.logical_not(in_range))
        def _() -> None:
            change = self._set_reference(self.reference[...] + self._block_maximum())
            self.values[...] *= change
            self.sums[...] *= change

        return jnp.where(in_range, 2, attempts + 1)

    def _attend_block(self) -> None:
        """Sums weights and weighted values of the block's keys, from nothing."""
        self.block_values[...] = jnp.zeros_like(self.block_values)
        self.block_sums[...] = jnp.zeros_like(self.block_sums)
        compute, last_compute = self.blocks.compute, self.blocks.last_compute
        done = 0
        if compute > last_compute:
            whole = self.valid // compute
            done = whole * compute
            count, tile = self._whole_tiles(whole)
            self.value_t[...] = jnp.zeros_like(self.value_t)
            self.carried[...] = jnp.zeros_like(self.carried)
            pl.loop(0, count)(lambda index: self._attend_tile(tile(index) * compute))
            for chunk, strip, weights in self._carried():
                self._add_values(chunk, strip, weights)
        pl.loop(0, self._small_tiles(pl.cdiv(self.valid - done, last_compute)))(
            lambda index: self._attend_end(done + index * last_compute)
        )

    def _whole_tiles(self, count: Index) -> tuple[Index, Callable[[Index], Index]]:
        """How many of the block's `count` whole tiles are attended, and which: here all."""
        return count, lambda index: index

    def _small_tiles(self, count: Index) -> Index:
        """How many of the `count` small tiles after them: here all."""
        return count

    def _first_key(self) -> Index:
        """Where the keys stand that the first reference is of."""
        return 0

    def _attend_tile(self, first: Index) -> None:
        """A whole tile; the last units' weights are left for the next one."""
        unit, behind, waiting = self.blocks.unit, self.blocks.behind, self._carried()
        chunks = self._chunks()
        units = [(chunk, strip) for strip in self._strips() for chunk in chunks]
        for index, (chunk, strip) in enumerate(units):
            waiting.append((chunk, strip, self._weights(_rows(first + chunk.start, unit), strip)))
            self._add_values(*waiting.pop(0))
            if 0 <= (turned := index - behind + 1) < len(chunks):  # the tile before is done with it
                new = chunks[turned]
                self._turn_values(_rows(first + new.start, unit), new)
        for index, (_, strip, weights) in enumerate(waiting):
            self.carried[pl.ds(index * unit, unit), pl.ds(0, strip.size)] = weights

    def _carried(self) -> list[tuple[pl.Slice, pl.Slice, Array]]:
        """Keys (in `value_t`), queries and weights of a tile's last units."""
        unit, behind, strip = self.blocks.unit, self.blocks.behind, self._strips()[-1]
        return [
            (chunk, strip, self.carried[pl.ds(index * unit, unit), pl.ds(0, strip.size)])
            for index, chunk in enumerate(self._chunks()[-behind:])
        ]

    def _attend_end(self, first: Index) -> None:
        """A small tile at the end of a block; rows after the last real key may hold anything."""
        rows, count = _rows(first, self.blocks.last_compute), self.valid - first
        chunk = pl.Slice(0, rows.size)
        self._turn_values(rows, chunk, count)
        for strip in self._strips():
            self._add_values(chunk, strip, self._weights(rows, strip, count))

    def _strips(self) -> list[pl.Slice]:
        """Queries of a unit."""
        return strips(self.blocks.queries, self.blocks.order.strip)

    def _chunks(self) -> list[pl.Slice]:
        """Keys of a unit, in a tile."""
        return strips(self.blocks.compute, self.blocks.unit)

    def _scores(self, rows: pl.Slice, strip: pl.Slice) -> Float32[Array, "keys queries"]:
        """Of base 2, less the reference."""
        if self.blocks.order.subtracts:
            return _dot(self.key[rows, :], self.query_t[:, strip]) - self.reference[:, strip]
        lanes = jax.lax.broadcasted_iota(jnp.int32, (rows.size, LANES), 1)
        ones = (lanes == 0).astype(self.key.dtype)
        return _dot(jnp.concatenate([self.key[rows, :], ones], axis=1), self.query_t[:, strip])

    def _weights(
        self, rows: pl.Slice, strip: pl.Slice, count: Index | None = None
    ) -> Float[Array, "keys queries"]:
        """Of a tile or, the others being 0, of its first `count` keys; adds them to the sums."""
        scores = self._scores(rows, strip)
        if count is not None:
            scores = only_first(count, scores, _EXCLUDED)
        weights = jnp.exp2(scores).astype(self.value.dtype)
        self.block_sums[:, strip] += sums_of_weights(weights)
        return weights

    def _turn_values(self, rows: pl.Slice, chunk: pl.Slice, count: Index | None = None) -> None:
        """Takes values into a part of `value_t`, zeros for those after the first `count`."""
        values = self.value[rows, :]
        if count is not None:
            values = only_first(count, values, 0)
        self.value_t[:, chunk] = values.T

    def _add_values(
        self, chunk: pl.Slice, strip: pl.Slice, weights: Float[Array, "keys queries"]
    ) -> None:
        """Takes weights of a part of `value_t` into the block's values."""
        self.block_values[:, strip] += _dot(self.value_t[:, chunk], weights)

    def _set_reference(self, new: Float32[Array, "1 queries"]) -> Float32[Array, "1 queries"]:
        """Takes the nearest number that `query_t` holds exactly; what sums change by."""
        head_dim = self.query.shape[-1]
        new = new.astype(jnp.bfloat16).astype(jnp.float32)
        change = jnp.exp2(self.reference[...] - new)
        self.reference[...] = new
        if not self.blocks.order.subtracts:
            # Of a key's further features only the first is 1.
            rows = jnp.broadcast_to(-new, (SUBLANES, self.blocks.queries))
            self.query_t[pl.ds(head_dim, SUBLANES), :] = rows.astype(self.query_t.dtype)
        return change

    def _maximum(self, first: Index) -> Float32[Array, "1 queries"]:
        """The largest score of the real ones of `LANES` keys, less the reference."""
        rows, count = _rows(first, LANES), self.valid - first
        scores = [only_first(count, self._scores(rows, s), _EXCLUDED) for s in self._strips()]
        return jnp.concatenate([x.max(0, keepdims=True) for x in scores], axis=1)

    def _block_maximum(self) -> Float32[Array, "1 queries"]:
        """The largest score of the block, or 0: the reference, if that is larger."""

        def further(index: Index, maximum: Array) -> Array:
            return jnp.maximum(maximum, self._maximum(index * LANES))

        at_least = jnp.zeros(self.reference.shape, jnp.float32)
        return jax.lax.fori_loop(0, pl.cdiv(self.valid, LANES), further, at_least)


def strips(length: int, most: int) -> list[pl.Slice]:
    """Queries, or keys, in parts of `most`, and one of the rest."""
    return [pl.Slice(start, min(most, length - start)) for start in range(0, length, most)]


def _rows(first: Index, size: int) -> pl.Slice:
    """pl.Slice of keys; all start at multiples of `LANES`."""
    return pl.Slice(pl.multiple_of(first, LANES), size)  # type: ignore[arg-type]


def _dot(left: Float[Array, "rows inner"], right: Float[Array, "inner columns"]) -> Array:
    """[rows, columns], float32."""
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.dot(left, right, preferred_element_type=jnp.float32, precision=precision)


def only_first(count: Index, x: Float[Array, "rows columns"], other: float) -> Array:
    """The first `count` rows; `other` instead of those after."""
    rows = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
    return jnp.where(rows < count, x, other)


def sums_of_weights(weights: Float[Array, "keys queries"]) -> Float32[Array, "sublanes queries"]:
    """Over keys, up to the last `SUBLANES` terms: whole registers are added."""
    packed = SUBLANES * 4 // weights.dtype.itemsize
    registers = weights.reshape(-1, SUMMED, packed, weights.shape[1])
    few = functools.reduce(jnp.add, (registers[:, index] for index in range(SUMMED)))
    return few.astype(jnp.float32).reshape(-1, SUBLANES, weights.shape[1]).sum(0)
