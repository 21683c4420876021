"""Arrays of the dtypes that weights have: cast, moved and fetched with other threads running.

numpy has bfloat16 and fp8 from ml_dtypes, whose casts run in one thread at a time; torch's do not.
"""

import jax
import ml_dtypes
import numpy as np
import torch
from jax.sharding import NamedSharding, PartitionSpec

ZERO = -1
"""In a row map: this row is not in the checkpoint and is zero."""


def take_rows(part: np.ndarray, pick: np.ndarray, dim: int) -> np.ndarray:
    """The rows `pick` along `dim`, zeros where it says `ZERO`."""
    if np.array_equal(pick, np.arange(part.shape[dim])):
        return part
    taken = np.take(bits(part), np.maximum(pick, 0), axis=dim).view(part.dtype)
    empty = [slice(None)] * part.ndim
    empty[dim] = pick == ZERO  # type: ignore[call-overload]
    bits(taken)[tuple(empty)] = 0
    return taken


def bits(array: np.ndarray) -> np.ndarray:
    """The same memory as whole numbers: moved by numpy itself, with other threads running."""
    return array.view(f"u{array.dtype.itemsize}")


_TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn,
                 "float8_e5m2": torch.float8_e5m2}  # fmt: skip
"""Dtypes that numpy has from ml_dtypes, whose casts run in one thread at a time."""


def copy_cast(part: np.ndarray, out: np.ndarray) -> None:
    """Copies into `out`, rounded to its dtype; several threads may do so at once."""
    if part.flags.writeable:  # torch warns of others, though it only reads
        as_torch(out).copy_(as_torch(np.asarray(part)))
    else:
        out[...] = part


def as_torch(array: np.ndarray) -> torch.Tensor:
    """The same memory as a torch tensor."""
    dtype = _TORCH_DTYPES.get(str(array.dtype))
    if dtype is None:
        return torch.from_numpy(array)
    return torch.from_numpy(array.view(f"i{array.dtype.itemsize}")).view(dtype)


def as_numpy(array: np.ndarray | torch.Tensor) -> np.ndarray:
    """The same memory as numpy's; of a tensor on a device its copy on the host."""
    if isinstance(array, np.ndarray):
        return array
    tensor = array.detach().cpu().contiguous()
    for name, dtype in _TORCH_DTYPES.items():
        if tensor.dtype == dtype:
            whole_numbers = tensor.view(torch.int8 if dtype.itemsize == 1 else torch.int16)
            return whole_numbers.numpy().view(getattr(ml_dtypes, name))
    return tensor.numpy()


def fetch(array: jax.Array | np.ndarray, layer: int | None) -> np.ndarray:
    """An array on the host, or one layer of it: from each shard its part, and no more.

    Of an array that several processes share, all of them have to ask, and each gets all of it.
    """
    if isinstance(array, np.ndarray):
        return array if layer is None else array[layer]
    if not array.is_fully_addressable:
        return _gathered(array, layer)
    out = np.empty(array.shape if layer is None else array.shape[1:], array.dtype)
    seen = set()
    for shard in array.addressable_shards:
        index = shard.index
        if layer is not None:
            inside = range(array.shape[0])[index[0]]
            if layer not in inside:
                continue
            index = index[1:]
        if str(index) in seen:
            continue
        seen.add(str(index))
        data = shard.data if layer is None else shard.data[layer - inside.start]
        out[index] = np.asarray(data)
    return out


def _gathered(array: jax.Array, layer: int | None) -> np.ndarray:
    """An array whose parts lie with several processes, brought together over the devices."""
    sharding = array.sharding
    assert isinstance(sharding, NamedSharding)
    take = jax.jit(
        lambda x, number: x if layer is None else x[number],
        out_shardings=NamedSharding(sharding.mesh, PartitionSpec()),
    )
    return np.asarray(take(array, 0 if layer is None else layer))
