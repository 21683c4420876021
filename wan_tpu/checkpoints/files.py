"""Which of a component's files are its weights, and what a file is that is none.

diffusers and transformers take files by name: an index with its shards, or the one plain file. So
what lies beside them (another precision, an old copy, macOS's `._` files) does no harm. A variant
(`fp16`) has names of its own, and is taken when it is asked for.
"""

import json
import pathlib
import re
from collections.abc import Callable, Collection
from typing import Any

from wan_tpu.errors import CheckpointError

PLAIN_NAMES = ("diffusion_pytorch_model", "model")
"""What diffusers and transformers call a component's weights, before `.safetensors`."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
SHARD = re.compile(r"-\d+-of-\d+")
_VARIANT = re.compile(
    rf"(?:{'|'.join(PLAIN_NAMES)})(?:\.safetensors\.index)?\.([^.]+?)(?:-\d+-of-\d+)?"
    r"\.(?:safetensors|json)"
)

ReadIndex = Callable[[str], list[str]]
"""From an index's file name to the names of its shards."""


def weight_files(
    path: pathlib.Path, plain_name: str | None = None, variant: str | None = None
) -> list[pathlib.Path]:
    """The safetensors files of a component, as diffusers would choose them.

    That is the index's files, else the plain file, of the variant where the component has it. Where
    neither is there, one variant (fp16) or one set of shards without an index will do.

    Args:
        path: folder of the component; a file is taken as it is.
        plain_name: one of `PLAIN_NAMES`; either is taken when not given.
        variant: for example `fp16`; a component without it has its plain files taken.

    Raises:
        CheckpointError: there is none, one is missing, or it is not clear which are meant.
    """
    if path.is_file():
        return [path]
    names = visible_names(path)

    def read_index(name: str) -> list[str]:
        return shards_of_index(path / name)

    chosen = choose_weights(names, read_index, str(path), plain_name=plain_name, variant=variant)
    return [path / name for name in chosen]


def choose_weights(
    names: Collection[str],
    read_index: ReadIndex,
    where: str,
    *,
    plain_name: str | None = None,
    variant: str | None = None,
) -> list[str]:
    """`weight_files` for a folder of which only the names are known.

    Args:
        names: of its files, hidden ones left out.
        read_index: reads an index that is among them.
        where: what messages call the folder.
        plain_name: see `weight_files`.
        variant: see `weight_files`.
    """
    plain_names = PLAIN_NAMES if plain_name is None else (plain_name,)
    for infix in (f".{variant}", "") if variant else ("",):
        for name in plain_names:
            found = _one_of_names(names, name, infix)
            if found is not None:
                return _shards(names, read_index, where, found)
    files = sorted(name for name in names if name.endswith(".safetensors"))
    indexes = [n for n in sorted(names) if ".safetensors.index" in n and n.endswith(".json")]
    if len(indexes) == 1 and files:
        return _shards(names, read_index, where, indexes[0])
    if not files:
        raise CheckpointError(f"no .safetensors file in {where}{_pickle_hint(names)}")
    if len({SHARD.sub("", name) for name in files}) > 1:
        raise CheckpointError(
            f"{where} has several sets of weights ({some(files)}) and none is called "
            f"{plain_names[0]}.safetensors; keep one of them{_variant_hint(names)}"
        )
    return files


def variants(names: Collection[str]) -> set[str]:
    """The variants that a component's folder has, by its files' names."""
    return {match[1] for name in names if (match := _VARIANT.fullmatch(name))} - {"index"}


def visible_names(folder: pathlib.Path) -> list[str]:
    """Files in order of their names, without hidden ones: macOS leaves a `._` file beside each."""
    return sorted(path.name for path in folder.glob("*") if not path.name.startswith("."))


def shards_of_index(index: pathlib.Path) -> list[str]:
    """The names of the shards that an index names, each once.

    Raises:
        CheckpointError: it is no index of safetensors files.
    """
    named = read_json(index).get("weight_map")
    names = list(named.values()) if isinstance(named, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{index} is not an index of safetensors files: no weight_map")
    return sorted(set(names))


def _one_of_names(names: Collection[str], plain_name: str, infix: str) -> str | None:
    """The index or the plain file of a variant (`.fp16`, or empty), whichever is looked for first.

    Diffusers wrote the name of a variant's index in two ways.
    """
    indexes = [
        f"{plain_name}.safetensors.index{infix}.json",
        f"{plain_name}.safetensors{infix}.index.json",
    ]
    plain = f"{plain_name}{infix}.safetensors"
    # transformers, whose name `model` is, looks for the plain file first.
    order = [plain, *indexes] if plain_name == "model" else [*indexes, plain]
    return next((name for name in order if name in names), None)


def _shards(names: Collection[str], read_index: ReadIndex, where: str, found: str) -> list[str]:
    if not found.endswith(".json"):
        return [found]
    shards = read_index(found)
    missing = [name for name in shards if name not in names]
    if missing:
        raise CheckpointError(f"{where} lacks {some(missing)}, named in {found}")
    return shards


def _pickle_hint(names: Collection[str]) -> str:
    others = [n for n in sorted(names) if n.endswith(".bin") or ".pt" in n or n.endswith(".ckpt")]
    if not others:
        return ""
    return f"; {some(others)} cannot be used, because pickle files can run code"


def _variant_hint(names: Collection[str]) -> str:
    found = sorted(variants(names))
    return f", or name a variant: {', '.join(found)}" if found else ""


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
