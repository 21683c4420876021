"""What people hand in where a model is expected, and what to tell them. Loads nothing."""

import pathlib
import re
from collections.abc import Collection

from wan_tpu.errors import CheckpointError, InputError

WHAT_TO_TAKE = (
    "take a folder or hub id in diffusers format, for example Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
)
_SINGLE_FILES = {
    ".safetensors": "a single file of weights, as ComfyUI takes them",
    ".gguf": "a GGUF file",
    ".pth": "a pickle file",
    ".pt": "a pickle file",
    ".ckpt": "a pickle file",
    ".bin": "a pickle file",
}
_HUB_ADDRESS = re.compile(
    r"(?:[a-z]+://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/]+/[^/?#]+)", re.I
)


def refuse_name(name: str, path: pathlib.Path) -> None:
    """Refuses a name that means something else than a model; an unknown one passes.

    Args:
        name: as the user wrote it.
        path: the same as a path, which is no folder.

    Raises:
        CheckpointError: a file is there.
        InputError: an address, or a file's name.
    """
    address = _HUB_ADDRESS.match(name)
    if address:
        raise InputError(f"{name} is an address; the hub id alone will do: {address[1]}")
    if "://" in name:
        raise InputError(f"{name} is an address, and models have none; {WHAT_TO_TAKE}")
    kind = _SINGLE_FILES.get(path.suffix.lower())
    if path.exists():
        if path.name == "model_index.json":
            raise CheckpointError(f"{name} is a file; give its folder: {path.parent}")
        raise CheckpointError(f"{name} is {kind or 'a file'} and no model folder; {WHAT_TO_TAKE}")
    if kind:
        raise InputError(f"there is no file {name}, nor would {kind} be taken; {WHAT_TO_TAKE}")


def describe_stranger(folder: pathlib.Path) -> str:
    """What a folder without a `model_index.json` seems to be; a sentence with a way out."""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    inside = [name for name in names if (folder / name / "model_index.json").is_file()]
    snapshots = sorted((folder / "snapshots").glob("*/model_index.json"))
    if inside:
        return f"{folder} is not the model's folder itself; give {folder / inside[0]}"
    if snapshots:
        return f"{folder} is the hub's cache of a model; give {snapshots[-1].parent}"
    return describe_names(str(folder), names)


def describe_names(where: str, names: Collection[str], *, twin: str | None = None) -> str:
    """What a model's place without a `model_index.json` seems to be, by its files' names.

    Args:
        where: what messages call it.
        names: of the files.
        twin: the hub id of the same model in diffusers format.
    """
    names = sorted({name.partition("/")[0] for name in names})
    weights = [name for name in names if pathlib.Path(name).suffix.lower() in _SINGLE_FILES]
    if not names:
        return f"{where} is empty; {WHAT_TO_TAKE}"
    if "adapter_config.json" in names or any("lora" in name.lower() for name in weights):
        return (
            f"{where} holds a LoRA, which is not a model by itself but what --lora takes; beside "
            f"it, {WHAT_TO_TAKE}"
        )
    originals = ("Wan2.1_VAE", "Wan2.2_VAE", "models_t5_umt5", "high_noise_model")
    if any(name.startswith(originals) for name in names):
        instead = f"{twin} is the same in diffusers format" if twin else WHAT_TO_TAKE
        return f"{where} is a model in Wan's original format; {instead}"
    if "config.json" in names or "tokenizer.json" in names:
        return f"{where} is one part of a model; give the folder with model_index.json above it"
    if weights:
        return f"{where} holds {_SINGLE_FILES[pathlib.Path(weights[0]).suffix.lower()]} " + (
            f"({weights[0]}); {WHAT_TO_TAKE}"
        )
    return f"{where} is not a model folder in diffusers format; {WHAT_TO_TAKE}"
