"""One array of a model's parameters: where it comes from, how it is laid out, how it is split.

A model states its weights as `Weight` values; everything else follows from them: the shapes for
compiling without weights, the bytes that `inspect` prints, the reads that fill each device.
Equal layers are one stacked array with the layer first, under a name with `*` for the layer.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wan_tpu.checkpoints.source import Index, TensorSource, check_tensors

ZERO = -1
"""In a row map: this row is not in the checkpoint and is zero."""


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

    def place(self, source: TensorSource, mesh: Mesh) -> jax.Array:
        """Reads each device's slice from `source` and puts it there."""

        def read(index: Index | None) -> np.ndarray:
            return self._read(source, index or ())

        return jax.make_array_from_callback(self.shape, NamedSharding(mesh, self.spec), read)

    def _read(self, source: TensorSource, index: Index) -> np.ndarray:
        """The part `index` of the array, read from as many tensors as it covers."""
        if not self.stacked:
            return self._read_layer(source, self.tensors[0], index)
        layers = self.tensors[index[0]]
        first = self._read_layer(source, layers[0], index[1:])
        part = np.empty((len(layers), *first.shape), self.dtype)
        part[0] = first
        for layer, tensor in enumerate(layers[1:], start=1):
            part[layer] = self._read_layer(source, tensor, index[1:])
        return part

    def _read_layer(self, source: TensorSource, tensor: str, index: Index) -> np.ndarray:
        """One tensor's part, its rows put in order, in the device's dtype."""
        picks: dict[int, np.ndarray] = {}
        reads = list(index)
        for dim, rows in self.rows.items():
            wanted = rows[index[dim]]
            present = wanted[wanted != ZERO]
            if present.size == 0:
                shape = [
                    len(range(n)[part]) for n, part in zip(self.layer_shape, index, strict=True)
                ]
                return np.zeros(shape, self.dtype)
            reads[dim] = slice(int(present.min()), int(present.max()) + 1)
            picks[dim] = np.where(wanted == ZERO, ZERO, wanted - present.min())
        part = source.read(tensor, tuple(reads))
        for dim, pick in picks.items():
            part = _take_rows(part, pick, dim)
        return np.ascontiguousarray(part.astype(self.dtype, copy=False))


def _take_rows(part: np.ndarray, pick: np.ndarray, dim: int) -> np.ndarray:
    """The rows `pick` along `dim`, zeros where it says `ZERO`."""
    if np.array_equal(pick, np.arange(part.shape[dim])):
        return part
    taken = np.take(part, np.maximum(pick, 0), axis=dim)
    empty = [slice(None)] * part.ndim
    empty[dim] = pick == ZERO  # type: ignore[call-overload]
    taken[tuple(empty)] = 0
    return taken


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
    check_tensors(component, expected_tensors(weights), source)
    return place_weights(weights, source, mesh)


def place_weights(
    weights: Iterable[Weight], source: TensorSource, mesh: Mesh
) -> dict[str, jax.Array]:
    """All parameters of a component, by name, read slice by slice to their devices."""
    placed = {}
    for weight in weights:
        # Waiting bounds the host memory: the next weight is read when this one has left.
        placed[weight.name] = jax.block_until_ready(weight.place(source, mesh))
    return placed
