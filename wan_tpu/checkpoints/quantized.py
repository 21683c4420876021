"""Weights quantised while they are read: a source around a source, as adapters are one.

A weight `x.weight` that is asked for in int8 comes as whole numbers of at most 127, and beside it
stands `x.weight_scale`, one float32 for each of its rows, by which they are to be multiplied: the
row's largest magnitude over 127. What is quantised is the weight as its source gives it, adapters
merged and scales of fp8 files applied. Layouts, padding and the order of rows are `Weight`'s
business: a device's part is cut, ordered and padded after it was quantised, its scales likewise.
"""

import threading
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np
import torch

from wan_tpu.checkpoints.arrays import as_torch, copy_cast
from wan_tpu.checkpoints.source import Index, TensorSource
from wan_tpu.checkpoints.weights import Weight
from wan_tpu.int8 import LARGEST, SMALLEST_MAGNITUDE

SCALE = "_scale"
"""What the name of a weight's scales has after the weight's."""

ELEMENTS_AT_ONCE = 1 << 20
"""Numbers that a reader has in float32 at a time; a 14B feed-forward weight has 71 million."""

_UNKNOWN = -1.0


def quantized(source: TensorSource, weights: Iterable[Weight]) -> TensorSource:
    """The source of these weights: its tensors that they want in int8 are quantised.

    Args:
        source: of the checkpoint's tensors.
        weights: that are read from it; with each of int8 there is one of its scales.
    """
    names = [t for w in weights if w.dtype == jnp.int8 for t in w.tensors]
    return QuantizedSource(source, names) if names else source


def without_scales(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes as a checkpoint has them: the scales are made here."""
    scales = {f"{name}{SCALE}" for name in shapes}
    return {name: shape for name, shape in shapes.items() if name not in scales}


class QuantizedSource:
    """The tensors of a source, some of them as int8 with a scale for each row.

    Reads may run in several threads at once.
    """

    def __init__(self, source: TensorSource, names: Iterable[str]):
        """Reads nothing.

        Args:
            source: of the tensors.
            names: of matrices to quantise; one that the source lacks is lacking here, too.
        """
        self._source = source
        self._weight_of = {f"{name}{SCALE}": name for name in names if name in source.shapes}
        self._names = set(self._weight_of.values())
        self._scales: dict[str, np.ndarray] = {}
        self._locks = {name: threading.Lock() for name in self._names}
        made = self._weight_of.items()
        self.description = source.description
        self.shapes: Mapping[str, tuple[int, ...]] = {
            **source.shapes,
            **{scale: source.shapes[name][:1] for scale, name in made},
        }
        self.dtypes: Mapping[str, str] = {
            **source.dtypes,
            **dict.fromkeys(self._names, "I8"),
            **dict.fromkeys(self._weight_of, "F32"),
        }

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """See `TensorSource.read`; a part of a row is quantised by the whole row's scale."""
        rows = index[0] if index else slice(None)
        if name in self._weight_of:
            return self._scales_of(self._weight_of[name], rows)
        part = self._source.read(name, index)
        if name not in self._names:
            return part
        return quantize_rows(part, self._scales_of(name, rows))

    def _scales_of(self, name: str, rows: slice) -> np.ndarray:
        """The scales of some rows; what is not known is found, some rows at a time."""
        num_rows, columns = self._source.shapes[name]
        at_once = max(1, ELEMENTS_AT_ONCE // columns)
        first, stop, _ = rows.indices(num_rows)
        with self._locks[name]:
            known = self._scales.setdefault(name, np.full(num_rows, _UNKNOWN, np.float32))
            for start in range(first - first % at_once, stop, at_once):
                block = slice(start, min(start + at_once, num_rows))
                if known[start] == _UNKNOWN:
                    known[block] = row_scales(self._source.read(name, (block, slice(None))))
        return known[rows]


def row_scales(matrix: np.ndarray) -> np.ndarray:
    """The largest magnitude of each row over 127, float32: `[rows, columns]` to `[rows]`."""
    largest = _float32(matrix).abs().amax(1).clamp_(min=SMALLEST_MAGNITUDE)
    return (largest / LARGEST).numpy()


def quantize_rows(part: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """A part of a matrix as int8: each row over its scale, rounded to whole numbers.

    Args:
        part: `[rows, columns]`, of any float dtype.
        scales: `[rows]`.
    """
    out = np.empty(part.shape, np.int8)
    at_once = max(1, ELEMENTS_AT_ONCE // max(part.shape[1], 1))
    for start in range(0, len(part), at_once):
        block = slice(start, start + at_once)
        whole = _float32(part[block]).div_(torch.from_numpy(scales[block])[:, None]).round_()
        as_torch(out)[block] = whole.clamp_(-LARGEST, LARGEST).to(torch.int8)
    return out


def _float32(part: np.ndarray) -> torch.Tensor:
    """A copy: torch casts with other threads running."""
    out = np.empty(part.shape, np.float32)
    copy_cast(part, out)
    return torch.from_numpy(out)
