"""One array of a model's parameters: where it comes from, how it is laid out, how it is split.

A model states its weights as `Weight` values; everything else follows from them: the shapes for
compiling without weights, the bytes that `inspect` prints, the reads that fill each device, and the
way back to the checkpoint's tensors. Equal layers are one stacked array with the layer first, under
a name with `*` for the layer.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wan_tpu.checkpoints.arrays import ZERO, bits, copy_cast, fetch, take_rows
from wan_tpu.checkpoints.loading import Part, place_parts
from wan_tpu.checkpoints.source import Index, TensorSource, check_tensors


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A parameter array and its way from the checkpoint.

    Attributes:
        name: in the model, with `*` in place of the layer where layers are stacked.
        tensors: checkpoint names, one per layer of a stacked weight, else one.
        tensor_shape: shape of each in the checkpoint.
        dtype: on the device.
        stacked: whether a layer dimension comes first.
        rows: per dimension of the tensor (not counting layers), the checkpoint row that each row of
            this weight takes, or `ZERO`; a dimension that is absent is taken as it is.
        spec: how the array is split, the layer dimension included; empty is whole.
    """

    name: str
    tensors: tuple[str, ...]
    tensor_shape: tuple[int, ...]
    dtype: Any
    stacked: bool = False
    rows: Mapping[int, np.ndarray] = dataclasses.field(default_factory=dict)
    spec: PartitionSpec = dataclasses.field(default_factory=PartitionSpec)

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """Shape of one layer, padding included."""
        return tuple(
            len(self.rows[dim]) if dim in self.rows else size
            for dim, size in enumerate(self.tensor_shape)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return (len(self.tensors), *self.layer_shape) if self.stacked else self.layer_shape

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole array, over all devices once."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize

    def bytes_per_device(self, mesh_shape: Mapping[str, int]) -> int:
        """Bytes on each device of a mesh with these axis sizes."""
        ways = 1
        for axes in self.spec:
            for axis in (axes,) if isinstance(axes, str) else axes or ():
                ways *= mesh_shape[axis]
        return self.num_bytes // ways

    def abstract(self, mesh: Mesh) -> jax.ShapeDtypeStruct:
        """The stage argument that stands for this weight."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=NamedSharding(mesh, self.spec))

    def layers(self, index: Index) -> Iterator[tuple[str, Index, Index]]:
        """The tensors that the part `index` of the array is read from.

        Yields:
            A tensor's name, the part of its layer, and where in the part of the array that goes.
        """
        if not self.stacked:
            yield self.tensors[0], index, ()
            return
        for number, tensor in enumerate(self.tensors[index[0]]):
            yield tensor, index[1:], (slice(number, number + 1),)

    def read_layer(self, source: TensorSource, tensor: str, index: Index, out: np.ndarray) -> None:
        """Reads one tensor's part, its rows put in order, into `out`, in the dtype of that.

        Args:
            source: of the tensors.
            tensor: one of `tensors`.
            index: the part, of the layer with its padding.
            out: of that part's shape; a layer dimension of one may come first.
        """
        out = out.reshape(out.shape[out.ndim - len(self.tensor_shape) :])
        picks: dict[int, np.ndarray] = {}
        reads = list(index)
        for dim, rows in self.rows.items():
            wanted = rows[index[dim]]
            present = wanted[wanted != ZERO]
            if present.size == 0:
                out[...] = 0
                return
            reads[dim] = slice(int(present.min()), int(present.max()) + 1)
            picks[dim] = np.where(wanted == ZERO, ZERO, wanted - present.min())
        part = source.read(tensor, tuple(reads))
        for dim, pick in picks.items():
            part = take_rows(part, pick, dim)
        copy_cast(part, out)

    def to_tensors(self, array: jax.Array | np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """The way back: the checkpoint's tensors, rows in its order, padding left out.

        Args:
            array: of `shape`; where several processes share it, all of them call this.

        Yields:
            Names and tensors in the array's dtype, one after the other, each fetched when its turn
            has come.
        """
        for number, tensor in enumerate(self.tensors):
            yield tensor, self.tensor_of(fetch(array, number if self.stacked else None))

    def tensor_of(self, layer: np.ndarray) -> np.ndarray:
        """One layer as the checkpoint's tensor: `[layer_shape]` to `[tensor_shape]`."""
        for dim, rows in self.rows.items():
            present = np.flatnonzero(rows != ZERO)
            assert len(present) == self.tensor_shape[dim]
            # Where each of the checkpoint's rows lies in the array.
            places = np.empty(self.tensor_shape[dim], np.int64)
            places[rows[present]] = present
            layer = np.take(bits(layer), places, axis=dim).view(layer.dtype)
        return layer


def expected_tensors(weights: Iterable[Weight]) -> dict[str, tuple[int, ...]]:
    """Checkpoint names and shapes that these weights are read from."""
    return {tensor: weight.tensor_shape for weight in weights for tensor in weight.tensors}


def abstract_weights(weights: Iterable[Weight], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The stage argument for a model's parameters: by name, nothing read."""
    return {weight.name: weight.abstract(mesh) for weight in weights}


def load_weights(
    component: str, weights: list[Weight], source: TensorSource, mesh: Mesh
) -> dict[str, jax.Array]:
    """All parameters of a component, by name, after every name and shape was checked.

    Raises:
        CheckpointError: the source does not hold exactly the tensors of the model.
    """
    part = Part(weights=weights, source=source, mesh=mesh)
    return load_parts({component: part})[component]


def load_parts(parts: Mapping[str, Part]) -> dict[str, dict[str, jax.Array]]:
    """The parameters of several components, read by the same readers, one after the other.

    Args:
        parts: by the component's name, in the order of loading. All are checked before the first
            is read.

    Returns:
        By component, then by the weight's name.

    Raises:
        CheckpointError: a source does not hold exactly the tensors of the model. Of several faults
            it is always the first in this order.
    """
    check_parts(parts)
    placed = place_parts(list(parts.values()))
    return {
        component: {weight.name: next(placed) for weight in part.weights}
        for component, part in parts.items()
    }


def check_parts(parts: Mapping[str, Part]) -> None:
    """Refuses components whose sources do not hold exactly the tensors of the model.

    Raises:
        CheckpointError: of the first such component.
    """
    for component, part in parts.items():
        check_tensors(component, expected_tensors(part.weights), part.source)


def place_weights(
    weights: Iterable[Weight], source: TensorSource, mesh: Mesh
) -> dict[str, jax.Array]:
    """Parameters by name, read slice by slice to their devices; nothing is checked."""
    weights = list(weights)
    placed = place_parts([Part(weights=weights, source=source, mesh=mesh)])
    return {weight.name: array for weight, array in zip(weights, placed, strict=True)}


def checkpoint_tensors(
    weights: Iterable[Weight], params: Mapping[str, jax.Array]
) -> Iterator[tuple[str, np.ndarray]]:
    """The checkpoint's tensors of a component's parameters, one after the other."""
    for weight in weights:
        yield from weight.to_tensors(params[weight.name])
