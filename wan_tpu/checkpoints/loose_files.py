"""Models that are no folder in diffusers format: one file of a transformer, Wan's original folder,
ComfyUI's files in one folder.

Files are told apart by their tensors. Whatever of a model they lack is taken from the public model
that the transformer is of.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping

from wan_tpu.checkpoints.component import find_components, in_diffusers_names
from wan_tpu.checkpoints.diffusers_folder import TOKENIZER
from wan_tpu.checkpoints.eight_bit import weight_names
from wan_tpu.checkpoints.files import SHARD, some, visible_names
from wan_tpu.checkpoints.known import recognise_transformer
from wan_tpu.checkpoints.renamed import RenamedSource
from wan_tpu.checkpoints.source import SafetensorsSource
from wan_tpu.errors import CheckpointError

logger = logging.getLogger(__name__)

_COMFYUI = ("diffusion_models", "unet", "text_encoders", "clip", "vae")
SUBFOLDERS = (*_COMFYUI, *(f"split_files/{name}" for name in _COMFYUI))
"""Where ComfyUI keeps its files, and where its authors' repositories do."""
TOKENIZER_FOLDERS = ("google/umt5-xxl", TOKENIZER, ".")
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
_WHAT = {"text_encoder": "a text encoder", "transformer": "a transformer", "vae": "an autoencoder"}
_EXPERTS = ("high_noise", "low_noise")
SHARDED = "diffusion_pytorch_model.safetensors.index.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LooseModel:
    """What was found.

    Attributes:
        known: which public model it is of: a name of `KNOWN_MODELS`, or wan-tiny.
        files: by component, tokenizer included, those that are there: a file, or the folder of
            several.
        pickles: files that hold a component, too, but cannot be used.
    """

    known: str
    files: Mapping[str, pathlib.Path]
    pickles: tuple[str, ...] = ()


def read_file(path: pathlib.Path) -> LooseModel:
    """What a single file is.

    Raises:
        CheckpointError: it is no transformer of a model that is known.
    """
    found = require_transformer(path)
    return LooseModel(known=_known(path), files=dict.fromkeys(found, path))


def require_transformer(path: pathlib.Path) -> list[str]:
    """The components that a file holds.

    Raises:
        CheckpointError: there is no whole transformer among them; says what it is instead.
    """
    if SHARD.search(path.stem):
        raise CheckpointError(f"{path} is one of several shards; give their folder, {path.parent}")
    found = _components_of(path)
    if "transformer" not in found:
        raise CheckpointError(f"{path} {_no_transformer(path, found)}")
    return found


def read_loose_folder(folder: pathlib.Path) -> LooseModel | None:
    """What lies in a folder without a `model_index.json`; None where there is no transformer.

    Raises:
        CheckpointError: a file is damaged, or there are several of one component.
    """
    by_component: dict[str, list[pathlib.Path]] = {}
    for path in _candidates(folder):
        for component in _components_of(path):
            by_component.setdefault(component, []).append(path)
    if "transformer" not in by_component:
        return None
    files = {}
    for component, paths in by_component.items():
        if len(paths) > 1:
            names = some([str(path.relative_to(folder)) for path in paths])
            raise CheckpointError(
                f"{folder} has {len(paths)} files of {_WHAT[component]} ({names}); "
                + (
                    "give the one that is meant, by its path"
                    if component == "transformer"
                    else "keep one of them"
                )
            )
        files[component] = paths[0]
    for name in TOKENIZER_FOLDERS:
        if any((folder / name / file).is_file() for file in TOKENIZER_FILES):
            files.setdefault(TOKENIZER, folder / name)
    pickles = [name for name in visible_names(folder) if name.endswith((".pth", ".pt"))]
    return LooseModel(known=_known(files["transformer"]), files=files, pickles=tuple(pickles))


def _candidates(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of weights in a folder; of a file in shards the folder itself."""
    candidates = []
    for place in (folder, *(folder / name for name in SUBFOLDERS)):
        names = visible_names(place) if place.is_dir() else []
        if SHARDED in names:
            candidates.append(place)
        for name in names:
            is_shard = SHARDED in names and name.startswith("diffusion_pytorch_model-")
            if name.endswith(".safetensors") and not is_shard:
                candidates.append(place / name)
    return candidates


def _components_of(path: pathlib.Path) -> list[str]:
    return list(find_components(SafetensorsSource(path).shapes))


def _known(path: pathlib.Path) -> str:
    """Which public model a transformer's file is of."""
    expert = next((each for each in _EXPERTS if each in path.name.lower()), None)
    if expert is not None:
        raise CheckpointError(
            f"{path} is by its name one of the two experts of Wan 2.2 A14B, which is not "
            "implemented yet"
        )
    source = SafetensorsSource(path)
    # The dtypes do not matter here; whoever reads the weights looks at them.
    weights = RenamedSource(source, {name: name for name in weight_names(source)})
    return recognise_transformer(in_diffusers_names("transformer", weights))


def _no_transformer(path: pathlib.Path, found: list[str]) -> str:
    names = SafetensorsSource(path).shapes
    if any(".lora_" in name or ".hada_w" in name or ".lokr_w" in name for name in names):
        return "holds a LoRA, which is not a model by itself"
    if found:
        return f"holds {_WHAT[found[0]]} and no transformer; give the transformer's file"
    first = next(iter(names), "nothing")
    return f"holds no Wan transformer ({len(names)} tensors, the first is {first})"
