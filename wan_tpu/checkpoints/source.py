"""Where tensors come from: safetensors files read slice by slice, or arrays in memory.

Only safetensors: it holds numbers and nothing that could run. A file is opened for one read and
closed again, so that its pages never count as this process's memory for longer than that read.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Protocol

import ml_dtypes
import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from wan_tpu.errors import CheckpointError

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

    def __init__(self, folder: pathlib.Path, *, aliases: Mapping[str, str] | None = None):
        """Reads names and shapes; no weights.

        Args:
            folder: of the component.
            aliases: second names of tied tensors, and the name each is known by here.

        Raises:
            CheckpointError: no safetensors here, or a file is missing, truncated or unreadable.
        """
        self.description = str(folder)
        self._stored: dict[str, tuple[pathlib.Path, str]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for path in _weight_files(folder):
            for stored_name, shape in _read_header(path).items():
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
    problems = [f"missing {_some(sorted(expected.keys() - found.keys()))}"]
    problems += [f"unexpected {_some(sorted(found.keys() - expected.keys()))}"]
    wrong = [
        f"{name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    problems += [f"misshapen {_some(wrong)}"]
    problems = [problem for problem in problems if not problem.endswith(" ")]
    if problems:
        raise CheckpointError(f"{component} in {source.description}: {'; '.join(problems)}")


def _some(names: list[str], limit: int = 4) -> str:
    """The first few of a list, with how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files of a component, from the index where there is one."""
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if indexes:
        try:
            names = sorted(set(json.loads(indexes[0].read_text())["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{indexes[0]} is not an index of safetensors files: {error}"
            ) from None
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"{folder} lacks {_some(missing)}, named in {indexes[0].name}")
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = sorted(p.name for p in folder.glob("*.bin")) + sorted(
            p.name for p in folder.glob("*.pt*")
        )
        hint = (
            f"; {_some(others)} cannot be used, because pickle files can run code" if others else ""
        )
        raise CheckpointError(f"no .safetensors file in {folder}{hint}")
    return files


def _read_header(path: pathlib.Path) -> dict[str, tuple[int, ...]]:
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no dict


def _opened(path: pathlib.Path):
    """Opens a safetensors file; what is wrong with it becomes one sentence."""
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is damaged or not a safetensors file: {error}") from None


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The same bits as a numpy array; numpy itself knows no bfloat16, ml_dtypes adds it."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
