"""The files that an adapter's name stands for: one, or one for each of two experts."""

import logging
import pathlib
from collections.abc import Sequence

from wan_tpu.checkpoints.files import some, visible_names
from wan_tpu.checkpoints.hub import Repository
from wan_tpu.checkpoints.loose_files import expert_by_name
from wan_tpu.errors import CheckpointError, InputError
from wan_tpu.family import TRANSFORMER, TRANSFORMER_2

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PLAIN_NAMES = (PEFT_FILE, "pytorch_lora_weights.safetensors")
"""What PEFT and diffusers call the one file of a folder."""

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
"""Suffixes of files that can run code."""


def find_files(name: str) -> list[pathlib.Path]:
    """One file, or the two of a folder that are called `high_noise` and `low_noise`.

    Args:
        name: a file, a folder, or a hub id; files of the hub are downloaded.

    Raises:
        InputError: nothing is called so.
        CheckpointError: it is no safetensors file, or it is not clear which is meant.
    """
    try:
        path = pathlib.Path(name).expanduser()
        if path.is_dir():
            return [path / each for each in _choose(visible_names(path), str(path))]
        if path.is_file():
            _check_suffix(path.name, name)
            return [path]
    except RuntimeError:  # ~somebody, who has no account here
        path = pathlib.Path(name)
    except OSError as error:
        raise InputError(f"the adapter {name!r} cannot be read: {error.strerror}") from None
    if _is_hub_id(name):
        return _from_hub(name)
    raise InputError(
        f"there is no adapter {name!r}: expected a {SUFFIX} file, its folder, or a hub id like "
        "owner/name"
    )


def _choose(names: Sequence[str], where: str, called: str = "") -> list[str]:
    """The adapter's files among those of a folder, which messages call so."""
    called = called or where
    files = [name for name in names if name.endswith(SUFFIX)]
    for plain in PLAIN_NAMES:
        if plain in files:
            return [plain]
    if len(files) == 1:
        return files
    experts = [expert_by_name(pathlib.Path(name)) for name in files]
    if sorted(experts, key=str) == [TRANSFORMER, TRANSFORMER_2]:
        return files
    if files:
        raise CheckpointError(
            f"{called} has {len(files)} {SUFFIX} files ({some(files)}); give one of them, for "
            f"example {where}/{files[0]}"
        )
    pickles = [name for name in names if name.endswith(PICKLES)]
    hint = f"; {some(pickles)} cannot be used, because pickle files can run code" if pickles else ""
    if PEFT_CONFIG in names and not pickles:
        hint = f"; {PEFT_CONFIG} is there, {PEFT_FILE} is missing"
    raise CheckpointError(f"{called} holds no adapter: no {SUFFIX} file{hint}")


def _check_suffix(file: str, name: str) -> None:
    if file.endswith(SUFFIX):
        return
    if file.endswith(PICKLES):
        raise CheckpointError(
            f"{name} is a pickle file, which can run code; convert it to {SUFFIX}, where its "
            "origin is trusted"
        )
    raise CheckpointError(f"{name} is no {SUFFIX} file, and adapters are read from those alone")


def _is_hub_id(name: str) -> bool:
    """Whether a name that is no path here may be the hub's: `owner/name`, and a file's in it."""
    is_local = name.startswith((".", "/", "~")) or "\\" in name or "://" in name
    inside = name.split("/")
    if is_local or not all(inside) or len(name) > 200 or pathlib.Path(inside[0]).is_dir():
        return False
    return (len(inside) == 2 and not name.endswith(SUFFIX)) or len(inside) > 2


def _from_hub(name: str) -> list[pathlib.Path]:
    """Of a repository its one adapter, or the file that is named."""
    owner, repository_name, *rest = name.split("/", 2)
    repository = Repository(f"{owner}/{repository_name}")
    if rest:
        _check_suffix(rest[0], name)
        folder = repository.fetch(rest, "the adapter")
        if not (folder / rest[0]).is_file():
            raise CheckpointError(f"the hub's {repository.hub_id} has no file {rest[0]}")
        return [folder / rest[0]]
    if repository.names is None:
        folder = repository.fetch([], "the adapter")  # what is in the cache has to do
        return [folder / each for each in _choose(visible_names(folder), name)]
    inside = [each for each in repository.names if "/" not in each]
    chosen = _choose(inside, name, called=f"the hub's {repository.hub_id}")
    config = [PEFT_CONFIG] if PEFT_CONFIG in repository.names else []
    folder = repository.fetch([*chosen, *config], "the adapter")
    return [folder / each for each in chosen]
