"""A source around a source of weights: what is read of a tensor has its adapters added.

So a merged model is loaded as any other: layouts, padding and the order of rows follow from
`Weight.rows`, each device's part is made where it is read, and no second copy of the model exists.
Nothing is ever subtracted: the base is in its files.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from wan_tpu.adapters.decomposed import Decomposed
from wan_tpu.adapters.form import Adapter
from wan_tpu.adapters.products import Product, make_product
from wan_tpu.checkpoints.arrays import copy_cast
from wan_tpu.checkpoints.source import Index, TensorSource


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Strengthened:
    """An adapter of one transformer, and how much of it is added."""

    adapter: Adapter
    strength: float


class MergedSource:
    """The tensors of a source, with adapters added in float32, one after the other."""

    def __init__(self, source: TensorSource, adapters: Sequence[Strengthened]):
        """Reads nothing; the adapters fit the source (`wan_tpu.adapters.fit`).

        Args:
            source: of the base's tensors, by diffusers' names.
            adapters: in the order in which they are added; those of strength 0 are not.
        """
        self._source = source
        self._products: dict[str, list[Product | Decomposed]] = {}
        self._differences: dict[str, list[np.ndarray]] = {}
        for each in adapters:
            if each.strength != 0:
                self._take(each)
        merged = {*self._products, *self._differences}
        self.description = source.description
        self.shapes: Mapping[str, tuple[int, ...]] = source.shapes
        self.dtypes: Mapping[str, str] = {**source.dtypes, **dict.fromkeys(merged, "F32")}

    def _take(self, added: Strengthened) -> None:
        adapter, strength = added.adapter, np.float32(added.strength)
        for name, factors in adapter.factors.items():
            if name in adapter.magnitudes:
                product = self._decompose(name, added)
            else:
                product = make_product(factors, added.strength)
            self._products.setdefault(name, []).append(product)
        for name, difference in adapter.differences.items():
            whole = difference.astype(np.float32) * strength
            shaped = whole.reshape(self._source.shapes[name])
            self._differences.setdefault(name, []).append(shaped)

    def _decompose(self, name: str, added: Strengthened) -> Decomposed:
        return Decomposed(
            make_product(added.adapter.factors[name], 1.0),
            added.adapter.magnitudes[name],
            added.strength,
            lambda rows: self._source.read(name, (rows,)),
        )

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """See `TensorSource.read`; tensors that an adapter changes are float32."""
        base = self._source.read(name, index)
        products, differences = self._products.get(name, []), self._differences.get(name, [])
        if not products and not differences:
            return base
        out = np.empty(base.shape, np.float32)
        copy_cast(base, out)
        plain = out.copy() if any(isinstance(each, Decomposed) for each in products) else out
        for product in products:
            self._add(product, name, index, plain, out)
        for difference in differences:
            out += difference[index]
        return out

    def _add(
        self,
        product: Product | Decomposed,
        name: str,
        index: Index,
        plain: np.ndarray,
        out: np.ndarray,
    ) -> None:
        """Adds one product to `out`, the part `index`; `plain` is that of the base."""
        shape = self._source.shapes[name]
        ranges = [range(size)[part] for size, part in zip(shape, index, strict=False)]
        ranges += [range(size) for size in shape[len(ranges) :]]
        if isinstance(product, Decomposed):
            product.add_to(out, plain, ranges[0], ranges[1])
            return
        if len(shape) == 2:
            product.add_to(torch.from_numpy(out), ranges[0], ranges[1])
            return
        # A convolution's kernel: its columns are channels and places, of which a part is taken.
        columns = range(product.shape[1])
        whole = torch.zeros(len(ranges[0]), len(columns))
        product.add_to(whole, ranges[0], columns)
        out += whole.numpy().reshape(-1, *shape[1:])[:, *index[1:]]
