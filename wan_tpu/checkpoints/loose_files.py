"""Models that are no folder in diffusers format: one file of a transformer, Wan's original folder,
ComfyUI's files in one folder.

Files are told apart by their tensors; which of two experts a transformer is, its name says.
Whatever of a model they lack is taken from the public model that the transformer is of.
"""

import dataclasses
import logging
import pathlib
import re
from collections.abc import Mapping

from wan_tpu.checkpoints.component import find_components, in_diffusers_names
from wan_tpu.checkpoints.diffusers_folder import TOKENIZER
from wan_tpu.checkpoints.eight_bit import weight_names
from wan_tpu.checkpoints.files import SHARD, some, visible_names
from wan_tpu.checkpoints.recognise import recognise_transformer
from wan_tpu.checkpoints.renamed import RenamedSource
from wan_tpu.checkpoints.source import SafetensorsSource
from wan_tpu.errors import CheckpointError
from wan_tpu.family import (
    IMAGE_ENCODER,
    TEXT_ENCODER,
    TRANSFORMER,
    TRANSFORMER_2,
    VAE,
    ModelKind,
)

logger = logging.getLogger(__name__)

_COMFYUI = ("diffusion_models", "unet", "text_encoders", "clip", "clip_vision", "vae")
_WANS = ("high_noise_model", "low_noise_model")
SUBFOLDERS = (*_COMFYUI, *(f"split_files/{name}" for name in _COMFYUI), *_WANS)
"""Where ComfyUI keeps its files, its authors' repositories do, and the Wan team its experts."""
TOKENIZER_FOLDERS = ("google/umt5-xxl", TOKENIZER, ".")
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")
_WHAT = {
    TEXT_ENCODER: "a text encoder",
    IMAGE_ENCODER: "an image encoder",
    TRANSFORMER: "a transformer",
    TRANSFORMER_2: "a low-noise transformer",
    VAE: "an autoencoder",
}
_EXPERT = re.compile(r"(?<![a-z])(high|low)[-_ ]?noise|a14b[-_](high|low)(?![a-z])", re.I)
"""In the name of an expert's file or folder; low and high alone may mean anything."""
SHARDED = "diffusion_pytorch_model.safetensors.index.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LooseModel:
    """What was found.

    Attributes:
        known: which public model it is of: a name of `KNOWN_MODELS`, or of an embedded model.
        files: by component, tokenizer included, those that are there: a file, or the folder of
            several.
        pickles: files that hold a component, too, but cannot be used.
    """

    known: str
    files: Mapping[str, pathlib.Path]
    pickles: tuple[str, ...] = ()


def read_file(path: pathlib.Path) -> LooseModel:
    """What a single file is.

    One of two experts is completed by the other where that lies beside it.

    Raises:
        CheckpointError: it is no transformer of a model that is known.
    """
    found = require_transformer(path)
    expert = expert_by_name(path)
    if expert is None:
        return LooseModel(known=_known([path]), files=dict.fromkeys(found, path))
    other = TRANSFORMER if expert == TRANSFORMER_2 else TRANSFORMER_2
    siblings = [each for each in _files_in(path.parent) if expert_by_name(each) == other]
    files = {expert: path}
    if len(siblings) == 1 and _components_of(siblings[0]) == [TRANSFORMER]:
        files[other] = siblings[0]
    return LooseModel(known=_known(list(files.values())), files=files)


def expert_by_name(path: pathlib.Path) -> str | None:
    """Which of two experts a file or folder is by its name, or that of Wan's folder around it.

    Returns:
        `transformer` for high noise, `transformer_2` for low noise, None for neither.
    """
    name = path.parent.name if path.parent.name in _WANS else path.name
    found = _EXPERT.search(name)
    if found is None:
        return None
    return TRANSFORMER if (found[1] or found[2]).lower() == "high" else TRANSFORMER_2


def which_expert(path: pathlib.Path, kind: ModelKind) -> str:
    """The transformer of a model's folder that a file in it is to replace.

    Args:
        path: of the file, in the folder itself or in a component's.
        kind: of the model.

    Raises:
        CheckpointError: there are two, and neither name nor place says which.
    """
    if len(kind.experts) == 1:
        return TRANSFORMER
    expert = expert_by_name(path)
    if expert is None and path.parent.name in kind.experts:
        expert = path.parent.name
    if expert is None:
        raise CheckpointError(
            f"{path} could be either of the two experts beside it; its name must have high_noise "
            "or low_noise in it"
        )
    return expert


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
    if TRANSFORMER not in by_component:
        return None
    if folder.name in _WANS and all((folder.parent / name).is_dir() for name in _WANS):
        raise CheckpointError(f"{folder} is one of two experts; give {folder.parent}")
    by_component |= _experts(by_component[TRANSFORMER])
    files = {}
    for component, paths in by_component.items():
        if len(paths) > 1:
            names = some([str(path.relative_to(folder)) for path in paths])
            raise CheckpointError(
                f"{folder} has {len(paths)} files of {_WHAT[component]} ({names}); "
                + (
                    "give the one that is meant, by its path"
                    if component in (TRANSFORMER, TRANSFORMER_2)
                    else "keep one of them"
                )
            )
        files[component] = paths[0]
    for name in TOKENIZER_FOLDERS:
        if any((folder / name / file).is_file() for file in TOKENIZER_FILES):
            files.setdefault(TOKENIZER, folder / name)
    pickles = [name for name in visible_names(folder) if name.endswith((".pth", ".pt"))]
    transformers = [files[name] for name in (TRANSFORMER, TRANSFORMER_2) if name in files]
    return LooseModel(known=_known(transformers), files=files, pickles=tuple(pickles))


def _experts(paths: list[pathlib.Path]) -> dict[str, list[pathlib.Path]]:
    """The same transformers by which expert they are, where all of them are one by name."""
    found: dict[str, list[pathlib.Path]] = {TRANSFORMER: [], TRANSFORMER_2: []}
    for path in paths:
        expert = expert_by_name(path)
        if expert is None:
            return {TRANSFORMER: paths}
        found[expert].append(path)
    return {expert: paths for expert, paths in found.items() if paths}


def _candidates(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of weights in a folder and where others keep them."""
    places = (folder, *(folder / name for name in SUBFOLDERS))
    return [path for place in places if place.is_dir() for path in _files_in(place)]


def _files_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of weights that lie there; of a file in shards the folder itself."""
    names = visible_names(folder)
    is_sharded = SHARDED in names
    return [folder] * is_sharded + [
        folder / name
        for name in names
        if name.endswith(".safetensors")
        and not (is_sharded and name.startswith("diffusion_pytorch_model-"))
    ]


def _components_of(path: pathlib.Path) -> list[str]:
    return list(find_components(SafetensorsSource(path).shapes))


def _known(paths: list[pathlib.Path]) -> str:
    """Which public model transformers' files are of: one transformer, or experts by their names."""
    names = []
    for path in paths:
        is_expert = expert_by_name(path) is not None
        source = SafetensorsSource(path)
        # The dtypes do not matter here; whoever reads the weights looks at them.
        weights = RenamedSource(source, {name: name for name in weight_names(source)})
        in_our_names = in_diffusers_names(TRANSFORMER, weights)
        names.append(
            recognise_transformer(in_our_names, num_experts=2 if is_expert else 1, called=path.name)
        )
    if len(set(names)) > 1:
        raise CheckpointError(
            f"{paths[0]} is of {names[0]} and {paths[1]} of {names[1]}; expected two experts of one"
        )
    return names[0]


def _no_transformer(path: pathlib.Path, found: list[str]) -> str:
    names = SafetensorsSource(path).shapes
    if any(".lora_" in name or ".hada_w" in name or ".lokr_w" in name for name in names):
        return "holds a LoRA, which is not a model by itself; --lora takes it"
    if found:
        return f"holds {_WHAT[found[0]]} and no transformer; give the transformer's file"
    first = next(iter(names), "nothing")
    return f"holds no Wan transformer ({len(names)} tensors, the first is {first})"
