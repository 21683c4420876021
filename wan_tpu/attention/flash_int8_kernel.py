"""The body of flash attention over keys of 8 bits: what differs from `flash_kernel`.

Scores are sums of products of whole numbers, which a matrix unit makes at twice bfloat16's rate:
queries are quantised here, a token each, keys come so (`wan_tpu.attention.int8_keys`). Exponentials
are made in bfloat16, and leave their unit packed, two for one. Products with the values are those
of `flash_kernel`.

The reference is a whole number of the query's scores' unit, and rides in the product exactly: in
digits, against constants in the keys' further features. All of these reach

    127 * 126 * 127 + 127 * 127 + 127 = 2,048,510, above 127 * 126 * 128 = 2,048,256,

the largest score of 128 features of at most 127 and 126: for no query is there a score that its
reference cannot stand at, so no query is clipped or needs a coarser scale. Where a matrix unit is
128 wide (`Order.subtracts`), the vector unit subtracts, and exponentials are of float32.

Cycles per (query, key) pair x 1e-3 of a whole tile of 9,472 queries, read from the compiler's
schedule for v6e (2026-11-27, jax 0.10.2, libtpu 0.0.42.1): 1.04, where 0.98 keeps the matrix unit
busy in every cycle. What was tried: `benchmarks/results/2026-11-27-flash-int8.md`.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, BFloat16, Float, Float32, Int8, Int32

from wan_tpu.attention.flash_blocks import LANES, SUBLANES, Blocks
from wan_tpu.attention.flash_kernel import Index, Step, only_first, scratch_shapes
from wan_tpu.int8 import LARGEST, SMALLEST_MAGNITUDE

SUMMED = 8
"""Weights added up in bfloat16 before float32: some 2e-4 of a sum is lost, a hundredth of what the
whole numbers lose."""

LARGEST_QUERY = 126
"""One less than of keys: so the digits reach every score."""

BELOW = 8
"""How far the reference stands below the logsumexp, in powers of two.

A bfloat16 exponent is off by 2^-9 of itself, so those that matter should be near 0: weights of a
query that are few are near its logsumexp, and of many, each is far below it.
"""

PACKED = SUBLANES * 4
"""Rows of a register of int8."""

_COARSE = LANES - 2
"""Features of the third digit; the second and the first have one each."""

_REACH = LARGEST * (_COARSE * LARGEST + LARGEST + 1)
"""The largest reference, in the scores' unit."""


def int8_scratch_shapes(blocks: Blocks, head_dim: int, dtype: jnp.dtype) -> dict[str, Any]:
    """What the kernel holds beside its blocks; `Int8Step` says what each is.

    Args:
        blocks: sizes.
        head_dim: features.
        dtype: of the values.
    """
    shapes = scratch_shapes(blocks, head_dim, dtype)
    return shapes | {
        "query_t": pltpu.VMEM(shapes["query_t"].shape, jnp.int8),
        "scale": pltpu.VMEM((1, blocks.queries), jnp.float32),
        "packed_scale": pltpu.VMEM((1, blocks.queries), jnp.bfloat16),
    }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Int8Step(Step):
    """A step whose scores are of whole numbers.

    Attributes:
        key_scale: what the head's keys are multiplied by.
        scale: [1, queries], float32: what a query's scores are multiplied by, to be of base 2.
        packed_scale: the same in bfloat16, in which they are exact.
    """

    key_scale: Any
    scale: Any
    packed_scale: Any

    def start(self) -> None:
        """Takes a new block of queries; the reference is the maximum over a few keys."""
        head_dim = self.query.shape[-1]
        scaled = self.query[...].T.astype(jnp.float32) * (head_dim**-0.5 * math.log2(math.e))
        magnitude = jnp.abs(scaled)
        largest = jnp.maximum(magnitude.max(0, keepdims=True), SMALLEST_MAGNITUDE)
        # Not every maximum sees NaN.
        largest = jnp.where(magnitude.sum(0, keepdims=True) < jnp.inf, largest, jnp.nan)
        # A bfloat16 number that is not below.
        packed = (largest * (self.key_scale / LARGEST_QUERY) * (1 + 2**-8)).astype(jnp.bfloat16)
        scale = packed.astype(jnp.float32)
        self.packed_scale[...], self.scale[...] = packed, scale
        self.query_t[pl.ds(0, head_dim), :] = _whole(scaled * (self.key_scale / scale))
        self._start_reference()
        # A few keys' maximum: all keys' logsumexp is above it.
        self._set_reference(self._maximum(self._first_key()) + BELOW)
        self.values[...] = jnp.zeros_like(self.values)
        self.sums[...] = jnp.zeros_like(self.sums)

    def _products(self, rows: pl.Slice, strip: pl.Slice) -> Int32[Array, "keys queries"]:
        """Scores in their query's unit; less the reference, where the matrix unit subtracts it."""
        keys = self.key[rows, :]
        if not self.blocks.order.subtracts:
            keys = jnp.concatenate([keys, constants(len(keys))], axis=1)
        return jnp.dot(keys, self.query_t[:, strip], preferred_element_type=jnp.int32)

    def _scores(self, rows: pl.Slice, strip: pl.Slice) -> Float32[Array, "keys queries"]:
        """Of base 2, less the reference."""
        scores = self._products(rows, strip).astype(jnp.float32) * self.scale[:, strip]
        return scores - self.reference[:, strip] if self.blocks.order.subtracts else scores

    def _weights(
        self, rows: pl.Slice, strip: pl.Slice, count: Index | None = None
    ) -> Float[Array, "keys queries"]:
        """Of a tile or, the others being 0, of its first `count` keys; adds them to the sums."""
        if self.blocks.order.subtracts:  # a chip whose vector and exponential units are of float32
            return Step._weights(self, rows, strip, count)
        products = self._products(rows, strip).astype(jnp.float32).astype(jnp.bfloat16)
        weights = self._exp2(products * self.packed_scale[:, strip])
        if count is not None:
            weights = only_first(count, weights, 0)
        self.block_sums[:, strip] += _sums(weights)
        return weights.astype(self.value.dtype)

    def _exp2(self, x: BFloat16[Array, "keys queries"]) -> BFloat16[Array, "keys queries"]:
        """Correctly rounded."""
        return jnp.exp2(x)

    def _set_reference(self, new: Float32[Array, "1 queries"]) -> Float32[Array, "1 queries"]:
        """Takes the nearest number of digits to what is `BELOW` below; what sums change by."""
        if self.blocks.order.subtracts:
            return Step._set_reference(self, new)
        head_dim = self.query.shape[-1]
        scale = self.scale[...]
        units = jnp.clip(jnp.round((new - BELOW) / scale), -_REACH, _REACH)
        new = units * scale
        change = jnp.exp2(self.reference[...] - new)
        self.reference[...] = new
        third, last = digits(-units)
        for start in range(0, LANES - PACKED, PACKED):
            self.query_t[pl.ds(head_dim + start, PACKED), :] = third
        self.query_t[pl.ds(head_dim + LANES - PACKED, PACKED), :] = last
        return change


class InterpretedInt8Step(Int8Step):
    """The same numbers where XLA makes them: its exp2 is exp(x log 2), both rounded to bfloat16."""

    def _exp2(self, x: BFloat16[Array, "keys queries"]) -> BFloat16[Array, "keys queries"]:
        """Correctly rounded."""
        return jnp.exp2(x.astype(jnp.float32)).astype(jnp.bfloat16)


def digits(
    units: Float32[Array, "1 queries"],
) -> tuple[Int8[Array, "packed queries"], Int8[Array, "packed queries"]]:
    """Features of queries whose product with `constants` is these whole numbers, up to the reach.

    Returns:
        the first `PACKED` features, like all but the last ones; the last `PACKED`.
    """
    third = jnp.clip(jnp.round(units / (_COARSE * LARGEST)), -LARGEST, LARGEST)
    units = units - third * (_COARSE * LARGEST)
    second = jnp.clip(jnp.round(units / LARGEST), -LARGEST, LARGEST)
    first = units - second * LARGEST
    index = jax.lax.broadcasted_iota(jnp.int32, (PACKED, units.shape[1]), 0)
    last = jnp.where(index < PACKED - 2, third, jnp.where(index < PACKED - 1, second, first))
    return _whole(jnp.broadcast_to(third, last.shape)), _whole(last)


def constants(keys: int) -> Int8[Array, "keys lanes"]:
    """Further features of keys: 127, and 1 for the lowest digit."""
    lanes = jax.lax.broadcasted_iota(jnp.int32, (keys, LANES), 1)
    return jnp.where(lanes < LANES - 1, LARGEST, 1).astype(jnp.int8)


def _whole(x: Float32[Array, "rows columns"]) -> Array:
    """The nearest whole numbers, int8."""
    return jnp.round(x).astype(jnp.int32).astype(jnp.int8)


def _sums(weights: BFloat16[Array, "keys queries"]) -> Float32[Array, "sublanes queries"]:
    """Over keys, up to the last `SUBLANES` terms: whole registers are added."""
    registers = weights.reshape(-1, SUMMED, SUBLANES * 2, weights.shape[1])
    few = functools.reduce(jnp.add, (registers[:, index] for index in range(SUMMED)))
    return few.astype(jnp.float32).reshape(-1, SUBLANES, weights.shape[1]).sum(0)
