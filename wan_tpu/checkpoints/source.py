"""Where tensors come from: safetensors files read slice by slice, or arrays in memory.

Only safetensors: it holds numbers and nothing that could run. A read maps its tensor and nothing
else; the pages are given back with the array that was read, so that they never count as this
process's memory for longer than whoever read it keeps it. Reads may run in several threads at once.
"""

import contextlib
import dataclasses
import json
import math
import mmap
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from wan_tpu.checkpoints.files import pointer_hint, some, weight_files
from wan_tpu.errors import CheckpointError

FLOATS = ("BF16", "F16", "F32", "F64")
"""Safetensors' names of the dtypes whose numbers are weights as they stand."""

EIGHT_BIT_FLOATS = ("F8_E4M3", "F8_E5M2")
"""Weights, too, but mostly with scales that are kept apart: see `wan_tpu.checkpoints.eight_bit`."""

DTYPES: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
"""numpy's dtypes by safetensors' names; it has others, which no numpy array can hold."""

_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}

Index = tuple[slice, ...]


@runtime_checkable
class TensorSource(Protocol):
    """Named tensors of one component of a model, in the checkpoint's own (torch) layout."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor by name."""
        ...

    @property
    def dtypes(self) -> Mapping[str, str]:
        """Safetensors' name of every tensor's dtype, by name."""
        ...

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """The part `index` of a tensor (all of it when empty), in its stored dtype.

        Not to be written to, and not to be kept: it may be the file itself.
        """
        ...

    @property
    def description(self) -> str:
        """What error messages call this source."""
        ...


class ArraySource:
    """Tensors that are already in memory, for tests and for models made on the spot."""

    def __init__(self, arrays: Mapping[str, np.ndarray], description: str = "arrays in memory"):
        self._arrays = arrays
        self.description = description
        self.shapes: Mapping[str, tuple[int, ...]] = {name: a.shape for name, a in arrays.items()}
        self.dtypes: Mapping[str, str] = {
            name: _NAMES.get(np.dtype(array.dtype), str(array.dtype))
            for name, array in arrays.items()
        }

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """See `TensorSource.read`."""
        return self._arrays[name][index]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """Where a tensor lies: bytes `begin` to `end` of the file."""

    path: pathlib.Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsSource:
    """The tensors of one component as they are stored: one safetensors file, or several."""

    def __init__(
        self,
        path: pathlib.Path,
        *,
        aliases: Mapping[str, str] | None = None,
        plain_name: str | None = None,
        variant: str | None = None,
    ):
        """Reads names, shapes and dtypes; no weights.

        Args:
            path: of the component's folder, or of the one file.
            aliases: second names of tied tensors, and the name each is known by here.
            plain_name: what its weights are called; see `wan_tpu.checkpoints.files.weight_files`.
            variant: which variant of them, where there is one.

        Raises:
            CheckpointError: no safetensors here, a file is missing, truncated or unreadable, a
                tensor is there twice.
        """
        self.description = str(path)
        self._stored: dict[str, _Stored] = {}
        files: dict[str, pathlib.Path] = {}
        for file in weight_files(path, plain_name, variant):
            for stored_name, stored in _read_header(file).items():
                other = files.setdefault(stored_name, file)
                if other != file:
                    raise CheckpointError(
                        f"{path}: {stored_name} is both in {other.name} and in {file.name}; "
                        "keep one of them"
                    )
                self._stored[(aliases or {}).get(stored_name, stored_name)] = stored
        self.shapes: Mapping[str, tuple[int, ...]] = {n: s.shape for n, s in self._stored.items()}
        self.dtypes: Mapping[str, str] = {n: s.dtype for n, s in self._stored.items()}

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """See `TensorSource.read`.

        Raises:
            CheckpointError: the file has gone or has become shorter since it was opened.
        """
        stored = self._stored[name]
        dtype = np.dtype(DTYPES[stored.dtype])
        if stored.begin == stored.end:
            return np.empty(stored.shape, dtype)[index]
        page = stored.begin - stored.begin % mmap.ALLOCATIONGRANULARITY
        try:
            with stored.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < stored.end:
                    raise CheckpointError(f"{stored.path} has become shorter while it was read")
                # A private copy that nobody writes to is the file's own pages.
                mapped = mmap.mmap(
                    file.fileno(), stored.end - page, access=mmap.ACCESS_COPY, offset=page
                )
        except OSError as error:
            raise CheckpointError(f"{stored.path} cannot be read: {error.strerror}") from None
        count = math.prod(stored.shape)
        whole = np.frombuffer(mapped, dtype, count, offset=stored.begin - page)
        return whole.reshape(stored.shape)[index]


def check_tensors(
    component: str,
    expected: Mapping[str, tuple[int, ...]],
    source: TensorSource,
) -> None:
    """Refuses a source whose tensors are not exactly those of the model.

    Args:
        component: the part of the model, for the message.
        expected: shapes by name, in the checkpoint's layout.
        source: what was found.

    Raises:
        CheckpointError: names the missing, unexpected and misshapen tensors.
    """
    found = source.shapes
    problems = [f"missing {some(sorted(expected.keys() - found.keys()))}"]
    problems += [f"unexpected {some(sorted(found.keys() - expected.keys()))}"]
    wrong = [
        f"{name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    problems += [f"misshapen {some(wrong)}"]
    problems = [problem for problem in problems if not problem.endswith(" ")]
    if problems:
        raise CheckpointError(f"{component} in {source.description}: {'; '.join(problems)}")


def _read_header(path: pathlib.Path) -> dict[str, _Stored]:
    """Every tensor of a file by name, in the order of the file."""
    with _opened(path):
        pass  # safetensors itself checks that the header is sound and covers the whole file
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    begin = 8 + length
    return {
        name: _Stored(
            path=path,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            begin=begin + entry["data_offsets"][0],
            end=begin + entry["data_offsets"][1],
        )
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    }


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    """Opens a safetensors file; what is wrong with it becomes one sentence."""
    try:
        with safe_open(path, framework="np") as file:
            yield file
    except (SafetensorError, OSError) as error:
        reason = pointer_hint(path) or f"is damaged or not a safetensors file: {error}"
        raise CheckpointError(f"{path} {reason}") from None
