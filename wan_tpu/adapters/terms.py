"""What adapters add to a weight, on its devices: small matrices, and what is made of them there.

Within a program they are of one layer: the first dimension, the layers', is away.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_tree = functools.partial(jax.tree_util.register_dataclass, meta_fields=[])


@functools.partial(_tree, data_fields=["up", "down"])
@dataclasses.dataclass(frozen=True, slots=True)
class Low:
    """`up @ down`."""

    up: Float[Array, "*layers rows rank"]
    down: Float[Array, "*layers rank columns"]

    def make(self) -> Float[Array, "rows columns"]:
        """The matrix of one layer, float32."""
        return self.up.astype(jnp.float32) @ self.down.astype(jnp.float32)


@functools.partial(_tree, data_fields=["first", "second"])
@dataclasses.dataclass(frozen=True, slots=True)
class ByElement:
    """LoHa's: two products, multiplied by element."""

    first: Low
    second: Low

    def make(self) -> Float[Array, "rows columns"]:
        """The matrix of one layer, float32."""
        return self.first.make() * self.second.make()


@functools.partial(_tree, data_fields=["left", "right", "rows", "columns"])
@dataclasses.dataclass(frozen=True, slots=True)
class ByBlock:
    """LoKr's: `right` once for each element of `left`; past the last row and column both are zero.

    `rows` and `columns` are where in the left and in the right one each of the weight's is found.
    """

    left: Float[Array, "*layers left_rows left_columns"]
    right: Float[Array, "*layers right_rows right_columns"]
    rows: Int[Array, "*layers two rows"]
    columns: Int[Array, "*layers two columns"]

    def make(self) -> Float[Array, "rows columns"]:
        """The matrix of one layer, float32."""
        pairs = zip((self.left, self.right), self.rows, self.columns, strict=True)
        left, right = (
            jnp.take(jnp.take(matrix, rows, axis=0), columns, axis=1)
            for matrix, rows, columns in pairs
        )
        return left * right


Matrix = Low | ByElement | ByBlock


@functools.partial(_tree, data_fields=["matrix", "scale"])
@dataclasses.dataclass(frozen=True, slots=True)
class Plain:
    """`scale` times a matrix."""

    matrix: Matrix
    scale: Float[Array, "*layers"]

    def added_to(self, plain: Float[Array, " *weight"]) -> Float[Array, " *weight"]:
        """What it adds to one layer of the base, whose numbers do not matter here."""
        return (self.matrix.make() * self.scale).reshape(plain.shape)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["matrix", "scale", "magnitude", "strength"],
    meta_fields=["dim"],
)
@dataclasses.dataclass(frozen=True, slots=True)
class Decomposed:
    """DoRA's difference of the base, times `strength`; see `wan_tpu.adapters.decomposed`.

    The norms are over `dim` of the base with its difference: 1 for those of rows.
    """

    matrix: Matrix
    scale: Float[Array, "*layers"]
    magnitude: Float[Array, "*layers size"]
    strength: Float[Array, "*layers"]
    dim: int

    def added_to(self, plain: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
        """What it adds to one layer of the base."""
        weight = plain + self.matrix.make() * self.scale
        norms = jnp.sqrt(jnp.sum(jnp.square(weight), axis=self.dim))
        factors = jnp.where(norms > 0, self.magnitude / jnp.where(norms > 0, norms, 1), 0)
        return (weight * jnp.expand_dims(factors, self.dim) - plain) * self.strength


Term = Plain | Decomposed
