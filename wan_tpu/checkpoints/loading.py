"""Fills devices from sources: several readers, and transfers that run meanwhile.

The unit is a shard: the part of a weight that a device holds. Readers read and cast a shard's
layers, each into its place in the shard's memory; a shard that is whole is sent to its devices
while the readers are at the next ones. How many shards are in flight is bounded by their bytes, so
that loading needs little more host memory than two of the largest, whatever the model's size.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import torch
from jax.sharding import Mesh, NamedSharding

from wan_tpu.checkpoints.source import Index, TensorSource

if TYPE_CHECKING:
    from wan_tpu.checkpoints.weights import Weight

MAX_READERS = 16
BYTES_IN_FLIGHT = 1 << 27
"""Host memory for shards that are being read or sent. Two shards are let through whatever they
weigh, since one is read while the other is sent."""
BYTES_OF_A_TASK = 1 << 22
"""Layers that are smaller are read several by one task: a task costs some 50 microseconds."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What is to be loaded of one component.

    Attributes:
        weights: its parameters.
        source: holds exactly their tensors.
        mesh: the devices.
    """

    weights: "Sequence[Weight]"
    source: TensorSource
    mesh: Mesh


def place_parts(parts: Sequence[Part]) -> Iterator[jax.Array]:
    """The arrays of all weights of all parts, in order, on the devices.

    Raises:
        CheckpointError: a tensor could not be read; of several the first in order.
    """
    with _readers() as readers:
        sent = _send(_shards(parts), readers)
        for part in parts:
            for weight in part.weights:
                sharding = NamedSharding(part.mesh, weight.spec)
                indices = sharding.addressable_devices_indices_map(weight.shape)
                arrays = [array for _ in _holders(indices) for array in next(sent)]
                by_device = {array.device: array for array in arrays}
                yield jax.make_array_from_single_device_arrays(
                    weight.shape, sharding, [by_device[device] for device in indices]
                )


@dataclasses.dataclass(slots=True, kw_only=True)
class _Shard:
    """A part of a weight, and the devices that hold it.

    Attributes:
        weight: whose it is.
        source: of the tensors.
        index: the part of the array.
        devices: those of this process that hold it.
        data: filled by the readers.
        reads: by the readers, in the order of the layers.
    """

    weight: "Weight"
    source: TensorSource
    index: Index
    devices: list[Any]
    data: Any = None
    reads: list[concurrent.futures.Future[None]] = dataclasses.field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = zip(self.index, self.weight.shape, strict=True)
        return tuple(len(range(size)[part]) for part, size in sizes)

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.weight.dtype).itemsize

    def start(self, readers: concurrent.futures.Executor) -> None:
        """Gives the layers to the readers."""
        self.data = _empty(self.shape, self.weight.dtype)
        layers = list(self.weight.layers(self.index))
        together = max(1, len(layers) * BYTES_OF_A_TASK // max(self.num_bytes, 1))
        self.reads = [
            readers.submit(self._read, self.data, layers[first : first + together])
            for first in range(0, len(layers), together)
        ]

    def _read(self, data: np.ndarray, layers: list[tuple[str, Index, Index]]) -> None:
        for tensor, index, place in layers:
            out = data[place] if place else data
            self.weight.read_layer(self.source, tensor, index, out)

    def send(self) -> list[jax.Array]:
        """Waits for the readers and starts sending; an array for each device.

        Raises:
            CheckpointError: the first of its layers that could not be read.
        """
        for read in self.reads:
            read.result()
        data, self.data, self.reads = self.data, None, []
        return [jax.device_put(data, device) for device in self.devices]


def _shards(parts: Sequence[Part]) -> Iterator[_Shard]:
    """What this process has to read, in the order of loading."""
    for part in parts:
        for weight in part.weights:
            sharding = NamedSharding(part.mesh, weight.spec)
            indices = sharding.addressable_devices_indices_map(weight.shape)
            for bounds, devices in _holders(indices).items():
                yield _Shard(
                    weight=weight,
                    source=part.source,
                    index=tuple(slice(*ends) for ends in bounds),
                    devices=devices,
                )


def _holders(indices: Mapping[Any, Index | None]) -> dict[tuple[Any, ...], list[Any]]:
    """The devices by the part that they hold, as (start, stop) per dimension."""
    devices: dict[tuple[Any, ...], list[Any]] = {}
    for device, index in indices.items():
        bounds = tuple((part.start, part.stop) for part in index or ())
        devices.setdefault(bounds, []).append(device)
    return devices


def _send(
    shards: Iterator[_Shard], readers: concurrent.futures.Executor
) -> Iterator[list[jax.Array]]:
    """The shards on their devices, in order, the next ones being read meanwhile."""
    reading: collections.deque[_Shard] = collections.deque()
    sending: collections.deque[tuple[int, list[jax.Array]]] = collections.deque()
    in_flight = 0

    def begin_to_send() -> list[jax.Array]:
        shard = reading.popleft()
        arrays = shard.send()
        sending.append((shard.num_bytes, arrays))
        return arrays

    for shard in shards:
        while len(reading) + len(sending) >= 2 and in_flight + shard.num_bytes > BYTES_IN_FLIGHT:
            if sending:
                num_bytes, arrays = sending.popleft()
                jax.block_until_ready(arrays)
                in_flight -= num_bytes
            else:
                yield begin_to_send()
        shard.start(readers)
        reading.append(shard)
        in_flight += shard.num_bytes
    while reading:
        yield begin_to_send()
    for _, arrays in sending:
        jax.block_until_ready(arrays)


@contextlib.contextmanager
def _readers() -> Iterator[concurrent.futures.Executor]:
    """Threads that read. torch casts in each of them alone: together they are enough."""
    threads = torch.get_num_threads()
    readers = concurrent.futures.ThreadPoolExecutor(
        min(MAX_READERS, max(2, os.cpu_count() or 1)),
        thread_name_prefix="reader",
        initializer=torch.set_num_threads,
        initargs=(1,),
    )
    try:
        yield readers
    finally:
        readers.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Memory that begins where JAX wants it to, so that a CPU device takes it over as it is."""
    num_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    memory = torch.empty(num_bytes, dtype=torch.uint8).numpy()
    return memory.view(dtype).reshape(shape)
