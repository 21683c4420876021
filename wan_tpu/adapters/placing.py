"""From adapters to terms on the devices of a weight, in the weight's order and split as it is."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from wan_tpu.adapters.form import Difference, Factors, Hadamard, Kronecker
from wan_tpu.adapters.merge import Strengthened
from wan_tpu.adapters.terms import ByBlock, ByElement, Decomposed, Low, Matrix, Plain, Term
from wan_tpu.checkpoints.arrays import ZERO, take_rows
from wan_tpu.checkpoints.loading import Part, place_parts
from wan_tpu.checkpoints.source import Index
from wan_tpu.checkpoints.weights import Weight
from wan_tpu.sharding.mesh import place
from wan_tpu.stage import abstract

RANKS = 16
"""Ranks are filled up with zeros to a multiple of it: adapters of near ranks share programs."""


def place_terms(weight: Weight, adapters: Sequence[Strengthened], mesh: Mesh) -> Iterator[Term]:
    """What the factors of adapters add to a weight: of each the layers of one form together.

    Args:
        weight: which.
        adapters: in the order in which they are added.
        mesh: of the weight's array.
    """
    for each in adapters:
        adapter = each.adapter
        by_form: dict[Any, dict[int, Difference]] = {}
        for number, tensor in enumerate(weight.tensors):
            if tensor in adapter.factors:
                difference, magnitude = adapter.factors[tensor], adapter.magnitudes.get(tensor)
                dim = None
                if magnitude is not None:
                    dim = 1 if magnitude.shape[0] == difference.shape[0] else 0
                blocks = difference.right.shape if isinstance(difference, Kronecker) else None
                form = (type(difference), blocks, dim)
                by_form.setdefault(form, {})[number] = difference
        for (*_, dim), differences in by_form.items():
            placing = _Placing(weight=weight, mesh=mesh)
            matrix = placing.matrix(differences)
            scales = {n: np.float32(made.scale) for n, made in differences.items()}
            strength = np.float32(each.strength)
            if dim is None:
                scales = {number: scale * strength for number, scale in scales.items()}
                yield Plain(matrix, placing.numbers(scales))
                continue
            magnitudes = {n: adapter.magnitudes[weight.tensors[n]] for n in differences}
            yield Decomposed(
                matrix,
                placing.numbers(scales),
                placing.vectors(magnitudes, dim=1 - dim),
                placing.numbers(dict.fromkeys(differences, strength)),
                dim,
            )


def abstract_term(weight: Weight, mesh: Any, rank: int, dtype: DTypeLike) -> Plain:
    """What stands for factors of every layer of a matrix, to plan and compile without them.

    Args:
        weight: of matrices.
        mesh: of devices, or an `AbstractMesh` where only sizes matter.
        rank: of the factors.
        dtype: of their file.
    """
    placing, layers = _Placing(weight=weight, mesh=mesh), len(weight.tensors)
    rows, columns = (placing._size(dim) for dim in (0, 1))
    rank += -rank % RANKS

    def stand_in(shape: tuple[int, ...], dtype: DTypeLike, *axes: Any) -> Any:
        return abstract(shape, dtype, placing._sharding(*axes))

    up = stand_in((layers, rows, rank), dtype, placing._axes(0), None)
    down = stand_in((layers, rank, columns), dtype, None, placing._axes(1))
    return Plain(Low(up, down), stand_in((layers,), np.float32))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Placing:
    """Puts matrices for some layers of a weight onto its devices; for the others zeros."""

    weight: Weight
    mesh: Any

    def matrix(self, differences: Mapping[int, Difference]) -> Matrix:
        """What differences of one form make, but for their scales."""
        first = next(iter(differences.values()))
        match first:
            case Factors():
                return self._low(differences)  # type: ignore[arg-type]
            case Hadamard():
                firsts = {number: each.first for number, each in differences.items()}  # type: ignore[union-attr]
                seconds = {number: each.second for number, each in differences.items()}  # type: ignore[union-attr]
                return ByElement(self._low(firsts), self._low(seconds))
        return self._by_block(differences)  # type: ignore[arg-type]

    def numbers(self, by_layer: Mapping[int, np.float32]) -> jax.Array:
        """One for each layer."""
        stacked = np.zeros(self._layers, np.float32)
        for number, value in by_layer.items():
            stacked[number] = value
        return self._place(stacked)

    def vectors(self, by_layer: Mapping[int, np.ndarray], *, dim: int) -> jax.Array:
        """One number for each row, or column, of each layer."""
        stacked = np.zeros((self._layers, self._size(dim)), np.float32)
        for number, vector in by_layer.items():
            stacked[number] = self._in_order(vector.astype(np.float32).reshape(-1), 0, dim)
        return self._place(stacked, self._axes(dim))

    def _low(self, factors: Mapping[int, Factors]) -> Low:
        rank = max(each.rank for each in factors.values())
        rank += -rank % RANKS
        dtypes = {array.dtype for each in factors.values() for array in (each.up, each.down)}
        dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)
        dtype = dtype if dtype.itemsize <= 4 else np.dtype(np.float32)
        up = np.zeros((self._layers, self._size(0), rank), dtype)
        down = np.zeros((self._layers, rank, self._size(1)), dtype)
        for number, each in factors.items():
            up[number, :, : each.rank] = self._in_order(each.up, 0, 0)
            down[number, : each.rank] = self._in_order(each.down, 1, 1)
        return Low(self._place(up, self._axes(0), None), self._place(down, None, self._axes(1)))

    def _by_block(self, differences: Mapping[int, Kronecker]) -> ByBlock:
        first = next(iter(differences.values()))
        matrices = []
        for name in ("left", "right"):
            rows, columns = getattr(first, name).shape
            stacked = np.zeros((self._layers, rows + 1, columns + 1), np.float32)
            for number, each in differences.items():
                stacked[number, :-1, :-1] = _whole(getattr(each, name))
            matrices.append(self._place(stacked))
        places = []
        for dim in (0, 1):
            inner, outer = first.right.shape[dim], first.left.shape[dim]
            rows = self._rows(dim)
            is_zero = rows == ZERO
            found = np.stack(
                [np.where(is_zero, outer, rows // inner), np.where(is_zero, inner, rows % inner)]
            )
            every = np.broadcast_to(found.astype(np.int32), (self._layers, *found.shape))
            places.append(self._place(every, None, self._axes(dim)))
        return ByBlock(*matrices, *places)

    @property
    def _layers(self) -> int:
        return len(self.weight.tensors)

    def _rows(self, dim: int) -> np.ndarray:
        """Which row (0) or column (1) of a tensor each of the weight's is."""
        shape = self.weight.tensor_shape
        size = shape[0] if dim == 0 else int(np.prod(shape[1:]))
        return self.weight.rows.get(dim, np.arange(size))

    def _size(self, dim: int) -> int:
        return len(self._rows(dim))

    def _in_order(self, array: np.ndarray, along: int, dim: int) -> np.ndarray:
        """An array whose dimension `along` is a tensor's `dim`, in the weight's order."""
        return take_rows(array, self._rows(dim), along)

    def _axes(self, dim: int) -> Any:
        """The mesh axes that split rows or columns; columns of a kernel are not split."""
        weight = self.weight
        spec = weight.spec[1:] if weight.stacked else weight.spec
        is_kernel = dim == 1 and len(weight.tensor_shape) != 2
        return spec[dim] if dim < len(spec) and not is_kernel else None

    def _place(self, stacked: np.ndarray, *axes: Any) -> jax.Array:
        return place(stacked, self._sharding(*axes))

    def _sharding(self, *axes: Any) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(None, *axes))


def _whole(matrix: np.ndarray | Factors) -> np.ndarray:
    if isinstance(matrix, Factors):
        return matrix.up.astype(np.float32) @ matrix.down.astype(np.float32)
    return matrix.astype(np.float32)


def place_difference(
    weight: Weight, adapters: Sequence[Strengthened], mesh: Mesh
) -> jax.Array | None:
    """The sum of whole differences of a weight, float32, split as it is; None where there is none.

    Read as weights are, so that each device gets its part alone. Arguments as of `place_terms`.
    """
    source = _Differences(weight, adapters)
    if source.is_empty:
        return None
    whole = dataclasses.replace(weight, dtype=np.float32)
    return next(place_parts([Part(weights=[whole], source=source, mesh=mesh)]))


class _Differences:
    """Whole differences of a weight's tensors as a source of them; zeros where there is none."""

    description = "adapters"

    def __init__(self, weight: Weight, adapters: Sequence[Strengthened]):
        self._found: dict[str, list[np.ndarray]] = {}
        for each in adapters:
            for tensor in weight.tensors:
                difference = each.adapter.differences.get(tensor)
                if difference is not None:
                    whole = difference.astype(np.float32) * np.float32(each.strength)
                    shaped = whole.reshape(weight.tensor_shape)
                    self._found.setdefault(tensor, []).append(shaped)
        self.shapes = dict.fromkeys(weight.tensors, weight.tensor_shape)
        self.dtypes = dict.fromkeys(weight.tensors, "F32")

    @property
    def is_empty(self) -> bool:
        return not self._found

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """See `TensorSource.read`."""
        found = self._found.get(name)
        if found is None:
            sizes = zip(index, self.shapes[name], strict=True)
            return np.zeros([len(range(size)[part]) for part, size in sizes], np.float32)
        return sum((each[index] for each in found[1:]), start=found[0][index].copy())
