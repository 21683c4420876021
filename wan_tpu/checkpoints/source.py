"""Where tensors come from: safetensors files read slice by slice, or arrays in memory.

Only safetensors: it holds numbers and nothing that could run. A file is opened for one read and
closed again, so that its pages never count as this process's memory for longer than that read.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from wan_tpu.checkpoints.files import pointer_hint, some, weight_files
from wan_tpu.errors import CheckpointError

FLOATS = ("BF16", "F16", "F32", "F64")
"""Safetensors' names of the dtypes that are taken. Eight bits (fp8, int8) come with scales that are
kept elsewhere, each maker's in its own way; without them the numbers are others."""

Index = tuple[slice, ...]


class TensorSource(Protocol):
    """Named tensors of one component of a model, in the checkpoint's own (torch) layout."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every tensor by name."""
        ...

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """The part `index` of a tensor (all of it when empty), in its stored dtype."""
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

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """See `TensorSource.read`."""
        return self._arrays[name][index]


class SafetensorsSource:
    """The tensors of one component's folder: one safetensors file, or several with an index."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        aliases: Mapping[str, str] | None = None,
        plain_name: str | None = None,
    ):
        """Reads names and shapes; no weights.

        Args:
            folder: of the component.
            aliases: second names of tied tensors, and the name each is known by here.
            plain_name: what its weights are called; see `wan_tpu.checkpoints.files.weight_files`.

        Raises:
            CheckpointError: no safetensors here, a file is missing, truncated or unreadable, a
                tensor is there twice or of a dtype that is not among `FLOATS`.
        """
        self.description = str(folder)
        self._stored: dict[str, tuple[pathlib.Path, str]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        files: dict[str, pathlib.Path] = {}
        for path in weight_files(folder, plain_name):
            for stored_name, shape in _read_header(path).items():
                other = files.setdefault(stored_name, path)
                if other != path:
                    raise CheckpointError(
                        f"{folder}: {stored_name} is both in {other.name} and in {path.name}; "
                        "keep one of them"
                    )
                name = (aliases or {}).get(stored_name, stored_name)
                shapes[name] = shape
                self._stored[name] = (path, stored_name)
        self.shapes: Mapping[str, tuple[int, ...]] = shapes

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        """See `TensorSource.read`."""
        path, stored_name = self._stored[name]
        with _opened(path) as file:
            if not index:
                return _to_numpy(file.get_tensor(stored_name))
            return _to_numpy(file.get_slice(stored_name)[index])


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


def _read_header(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name, of tensors whose numbers are weights as they stand."""
    shapes = {}
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 - no dict
            tensor = file.get_slice(name)
            if tensor.get_dtype() not in FLOATS:
                raise CheckpointError(
                    f"{path}: {name} is {tensor.get_dtype()}, and only {', '.join(FLOATS)} are "
                    "weights as they stand; take the model's files in bfloat16"
                )
            shapes[name] = tuple(tensor.get_shape())
    return shapes


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    """Opens a safetensors file; what is wrong with it becomes one sentence."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        reason = pointer_hint(path) or f"is damaged or not a safetensors file: {error}"
        raise CheckpointError(f"{path} {reason}") from None


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The same bits as a numpy array; numpy itself knows no bfloat16, ml_dtypes adds it."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
