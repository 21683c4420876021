"""A source around a source of weights: what is read of a tensor has its adapters added.

So a merged model is loaded as any other: layouts, padding and the order of rows follow from
`Weight.rows`, each device's part is made where it is read, and no second copy of the model exists.
Nothing is ever subtracted: the base is in its files.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from wan_tpu.adapters.form import Adapter
from wan_tpu.checkpoints.arrays import as_torch, copy_cast
from wan_tpu.checkpoints.source import Index, TensorSource

TILE = 256
"""Rows and columns of the products. Whichever part of a weight is read, the same ones are
multiplied: a product's last bit depends on its sizes, and every layout is to have the same weights.
Smaller ones cost calls (some 20 microseconds each), larger ones numbers that a part does not need.
"""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Strengthened:
    """An adapter of one transformer, and how much of it is added."""

    adapter: Adapter
    strength: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Product:
    """`scale * up @ down`: `[rows, rank]` and `[rank, columns]`, in the file's dtype."""

    up: torch.Tensor
    down: torch.Tensor
    scale: float

    def add_to(self, out: torch.Tensor, rows: range, columns: range) -> None:
        """Adds the part `rows`, `columns` to `out`, of that shape, float32."""
        for upper in _tiles(rows, len(self.up)):
            up = self.up[upper.start : upper.stop].to(torch.float32, copy=True)
            for left in _tiles(columns, self.down.shape[1]):
                down = self.down[:, left.start : left.stop].to(torch.float32, copy=True)
                product = up @ down.contiguous()
                product *= self.scale  # apart from the sum, which is not to be fused with it
                r, c = _common(rows, upper), _common(columns, left)
                here = product[_slice(r, upper), _slice(c, left)]
                out[_slice(r, rows), _slice(c, columns)] += here


class MergedSource:
    """The tensors of a source, with adapters added in float32, one after the other."""

    def __init__(self, source: TensorSource, adapters: Sequence[Strengthened]):
        """Reads nothing; the adapters fit the source (`wan_tpu.adapters.fit`).

        Args:
            source: of the base's tensors, by diffusers' names.
            adapters: in the order in which they are added; those of strength 0 are not.
        """
        self._source = source
        self._products: dict[str, list[_Product]] = {}
        self._differences: dict[str, list[np.ndarray]] = {}
        for each in adapters:
            if each.strength != 0:
                self._take(each)
        merged = {*self._products, *self._differences}
        self.description = source.description
        self.shapes: Mapping[str, tuple[int, ...]] = source.shapes
        self.dtypes: Mapping[str, str] = {**source.dtypes, **dict.fromkeys(merged, "F32")}

    def _take(self, added: Strengthened) -> None:
        strength = np.float32(added.strength)
        for name, factors in added.adapter.factors.items():
            product = _Product(
                up=as_torch(np.ascontiguousarray(factors.up)),
                down=as_torch(np.ascontiguousarray(factors.down)),
                scale=float(np.float32(factors.scale) * strength),
            )
            self._products.setdefault(name, []).append(product)
        for name, difference in added.adapter.differences.items():
            whole = difference.astype(np.float32) * strength
            shaped = whole.reshape(self._source.shapes[name])
            self._differences.setdefault(name, []).append(shaped)

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """See `TensorSource.read`; tensors that an adapter changes are float32."""
        base = self._source.read(name, index)
        products, differences = self._products.get(name, []), self._differences.get(name, [])
        if not products and not differences:
            return base
        out = np.empty(base.shape, np.float32)
        copy_cast(base, out)
        for product in products:
            self._add(product, name, index, out)
        for difference in differences:
            out += difference[index]
        return out

    def _add(self, product: _Product, name: str, index: Index, out: np.ndarray) -> None:
        shape = self._source.shapes[name]
        ranges = [range(size)[part] for size, part in zip(shape, index, strict=False)]
        ranges += [range(size) for size in shape[len(ranges) :]]
        if len(shape) == 2:
            product.add_to(torch.from_numpy(out), ranges[0], ranges[1])
            return
        # A convolution's kernel: its columns are channels and places, of which a part is taken.
        whole = torch.zeros(len(ranges[0]), product.down.shape[1])
        product.add_to(whole, ranges[0], range(product.down.shape[1]))
        out += whole.numpy().reshape(-1, *shape[1:])[:, *index[1:]]


def _tiles(wanted: range, size: int) -> Iterator[range]:
    """The tiles of a dimension that hold some of what is wanted."""
    if len(wanted) == 0:
        return
    for start in range(wanted.start - wanted.start % TILE, wanted.stop, TILE):
        yield range(start, min(start + TILE, size))


def _common(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


def _slice(part: range, of: range) -> slice:
    """Where a part lies within what begins at `of`."""
    return slice(part.start - of.start, part.stop - of.start)
