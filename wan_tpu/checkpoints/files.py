"""Which of a component's files are its weights, and what a file is that is none.

diffusers and transformers take files by name: an index with its shards, or the one plain file. So
what lies beside them (another precision, an old copy, macOS's `._` files) does no harm.
"""

import json
import pathlib
import re
from typing import Any

from wan_tpu.errors import CheckpointError

PLAIN_NAMES = ("diffusion_pytorch_model", "model")
"""What diffusers and transformers call a component's weights, before `.safetensors`."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_SHARD = re.compile(r"-\d+-of-\d+")


def weight_files(folder: pathlib.Path, plain_name: str | None = None) -> list[pathlib.Path]:
    """The safetensors files of a component, as diffusers would choose them.

    That is the index's files, else the plain file. Where neither is there, one variant (fp16) or
    one set of shards without an index will do.

    Args:
        folder: of the component.
        plain_name: one of `PLAIN_NAMES`; either is taken when not given.

    Raises:
        CheckpointError: there is none, one is missing, or it is not clear which are meant.
    """
    for name in PLAIN_NAMES if plain_name is None else (plain_name,):
        index, plain = folder / f"{name}.safetensors.index.json", folder / f"{name}.safetensors"
        # transformers, whose name `model` is, looks the other way round.
        for path in (plain, index) if name == "model" else (index, plain):
            if path.is_file():
                return _files_of_index(path) if path == index else [path]
    files = _visible(folder, "*.safetensors")
    indexes = _visible(folder, "*.safetensors.index*.json")
    if len(indexes) == 1 and files:
        return _files_of_index(indexes[0])
    if not files:
        raise CheckpointError(f"no .safetensors file in {folder}{_pickle_hint(folder)}")
    if len({_SHARD.sub("", path.name) for path in files}) > 1:
        raise CheckpointError(
            f"{folder} has several sets of weights ({some([path.name for path in files])}) and "
            f"none is called {plain_name or PLAIN_NAMES[0]}.safetensors; keep one of them"
        )
    return files


def _files_of_index(index: pathlib.Path) -> list[pathlib.Path]:
    """The shards that an index names, each once."""
    named = read_json(index).get("weight_map")
    names = list(named.values()) if isinstance(named, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{index} is not an index of safetensors files: no weight_map")
    names = sorted(set(names))
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(f"{index.parent} lacks {some(missing)}, named in {index.name}")
    return [index.parent / name for name in names]


def _visible(folder: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    """Files in order of their names, without hidden ones: macOS leaves a `._` file beside each."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def _pickle_hint(folder: pathlib.Path) -> str:
    others = [path.name for path in _visible(folder, "*.bin") + _visible(folder, "*.pt*")]
    if not others:
        return ""
    return f"; {some(others)} cannot be used, because pickle files can run code"


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: it is missing or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing: not a model folder in diffusers format"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        reason = pointer_hint(path) or f"cannot be read: {error}"
        raise CheckpointError(f"{path} {reason}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def pointer_hint(path: pathlib.Path) -> str:
    """What to do about a file that git-lfs has not fetched; empty for any other file."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return ""
    return "is git-lfs's pointer to a file that was not fetched; run git lfs pull" * is_pointer


def some(names: list[str], limit: int = 4) -> str:
    """The first few of a list, with how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
