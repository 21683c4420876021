"""The matrices that an adapter's small ones make, in float32, tile by tile.

Whichever part of a weight is read, the same tiles are multiplied: a product's last bit depends on
its sizes, and every layout is to have the same weights.
"""

import dataclasses
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch

from wan_tpu.adapters.form import Difference, Factors, Hadamard, Kronecker
from wan_tpu.checkpoints.arrays import as_torch

TILE = 256
"""Rows and columns of the products. Smaller ones cost calls (some 20 microseconds each), larger
ones numbers that a part does not need."""

Pick = slice | torch.Tensor
"""Rows or columns: in a row, or by their numbers."""


class _Matrix(Protocol):
    """A matrix of which parts can be had, float32."""

    def part(self, rows: range, columns: range) -> torch.Tensor:
        """`[rows, columns]`, its own memory."""
        ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Product:
    """`scale` times a matrix, of `shape`, as it is added to a weight."""

    matrix: _Matrix
    scale: float
    shape: tuple[int, int]

    def add_to(self, out: torch.Tensor, rows: range, columns: range) -> None:
        """Adds the part `rows`, `columns` to `out`, of that shape, float32."""
        for upper in tiles(rows, self.shape[0]):
            for left in tiles(columns, self.shape[1]):
                product = self.matrix.part(upper, left)
                product *= self.scale  # apart from the sum, which is not to be fused with it
                r, c = _common(rows, upper), _common(columns, left)
                here = product[slice_in(r, upper), slice_in(c, left)]
                out[slice_in(r, rows), slice_in(c, columns)] += here


def make_product(difference: Difference, strength: float) -> Product:
    """What is added of a difference at some strength; the arrays are not copied."""
    matrix: _Matrix
    match difference:
        case Factors():
            matrix = _Small.of(difference)
        case Hadamard():
            matrix = _ByElement(
                first=_Small.of(difference.first), second=_Small.of(difference.second)
            )
        case Kronecker():
            matrix = _ByBlock(
                left=_Small.of(difference.left),
                right=_Small.of(difference.right),
                rows=difference.right.shape[0],
                columns=difference.right.shape[1],
            )
    scale = float(np.float32(difference.scale) * np.float32(strength))
    return Product(matrix=matrix, scale=scale, shape=difference.shape)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Small:
    """`up @ down`, or `up` alone, in the file's dtype."""

    up: torch.Tensor
    down: torch.Tensor | None

    @classmethod
    def of(cls, matrix: np.ndarray | Factors) -> "_Small":
        if isinstance(matrix, Factors):
            return cls(up=_torch(matrix.up), down=_torch(matrix.down))
        return cls(up=_torch(matrix), down=None)

    def part(self, rows: range, columns: range) -> torch.Tensor:
        """See `_Matrix.part`."""
        return self.at(slice(rows.start, rows.stop), slice(columns.start, columns.stop))

    def at(self, rows: Pick, columns: Pick) -> torch.Tensor:
        """`[rows, columns]`, float32, its own memory."""
        if self.down is None:
            return self.up[rows][:, columns].to(torch.float32, copy=True)
        up = self.up[rows].to(torch.float32, copy=True)
        down = self.down[:, columns].to(torch.float32, copy=True)
        return up @ down.contiguous()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _ByElement:
    """LoHa's: two matrices of one shape, multiplied by element."""

    first: _Small
    second: _Small

    def part(self, rows: range, columns: range) -> torch.Tensor:
        """See `_Matrix.part`."""
        return self.first.part(rows, columns).mul_(self.second.part(rows, columns))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _ByBlock:
    """LoKr's: `right`, `[rows, columns]`, once for each element of `left`."""

    left: _Small
    right: _Small
    rows: int
    columns: int

    def part(self, rows: range, columns: range) -> torch.Tensor:
        """See `_Matrix.part`."""
        row, column = (torch.arange(each.start, each.stop) for each in (rows, columns))
        left = self.left.at(row // self.rows, column // self.columns)
        return left.mul_(self.right.at(row % self.rows, column % self.columns))


def tiles(wanted: range, size: int) -> Iterator[range]:
    """The tiles of a dimension that hold some of what is wanted."""
    if len(wanted) == 0:
        return
    for start in range(wanted.start - wanted.start % TILE, wanted.stop, TILE):
        yield range(start, min(start + TILE, size))


def slice_in(part: range, of: range) -> slice:
    """Where a part lies within what begins at `of`."""
    return slice(part.start - of.start, part.stop - of.start)


def _common(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


def _torch(array: np.ndarray) -> torch.Tensor:
    return as_torch(np.ascontiguousarray(array))
