"""A model's folder in diffusers format: `model_index.json`, and a folder for each component."""

import logging
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from wan_tpu.checkpoints.component import COMPONENTS, PLAIN_NAMES
from wan_tpu.checkpoints.defaults import read_defaults
from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.checkpoints.distilled import read_distilled
from wan_tpu.checkpoints.files import (
    choose_weights,
    read_json,
    shards_of_index,
    variants,
    visible_names,
)
from wan_tpu.checkpoints.image_processor import FILES, IMAGE_PROCESSOR, check_image_processor
from wan_tpu.checkpoints.kinds import check_components_fit, expert_names, read_kind
from wan_tpu.checkpoints.known import KnownModel
from wan_tpu.checkpoints.strangers import describe_stranger
from wan_tpu.errors import CheckpointError, UnknownNameError
from wan_tpu.family import IMAGE_ENCODER, TRANSFORMER

logger = logging.getLogger(__name__)

INDEX_FILE = "model_index.json"
TOKENIZER = "tokenizer"


def is_diffusers_folder(folder: pathlib.Path) -> bool:
    """Whether a model in diffusers format lies there.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    try:
        return (folder / INDEX_FILE).is_file()
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from None


def read_folder(
    name: str,
    folder: pathlib.Path,
    *,
    variant: str | None = None,
    official: KnownModel | None = None,
) -> ModelDescription:
    """Reads the configurations of a folder in diffusers format; no weights.

    Args:
        name: as the user wrote it.
        folder: of the model.
        variant: of the weights.
        official: which of Wan's own it is, whose scheduler's file is not what Wan runs.

    Raises:
        CheckpointError: its files are not those of a Wan model that is implemented.
    """
    if not is_diffusers_folder(folder):
        raise CheckpointError(f"{INDEX_FILE} is missing: {describe_stranger(folder)}")
    index = read_json(folder / INDEX_FILE)
    where = f"{folder}/{INDEX_FILE}"
    experts = {name: _read_config(folder / name) for name in expert_names(index, where)}
    kind = read_kind(index, experts, where)
    configs = {
        name: experts[name] if name in experts else _read_config(folder / name)
        for name in kind.components
    }
    check_components_fit(configs, str(folder))
    if IMAGE_ENCODER in configs:
        image_size = configs[IMAGE_ENCODER].get("image_size")
        check_image_processor(folder, 224 if image_size is None else image_size)
    called = f"{pathlib.PurePath(name.partition('@')[0]).name} {folder.resolve().name}"
    run = read_defaults(folder, kind, configs[TRANSFORMER], called=called, official=official)
    return ModelDescription(
        name=name,
        folder=folder,
        kind=kind,
        configs=configs | {"scheduler": run.scheduler},
        defaults=run.defaults,
        defaults_from=run.origins,
        variant=variant,
        distilled=read_distilled(index, where),
    )


def config_names(names: Collection[str]) -> list[str]:
    """Those of a repository's files that are read before any weights."""
    folders = (*COMPONENTS, TOKENIZER, "scheduler")
    image_processor = [f"{IMAGE_PROCESSOR}/{name}" for name in FILES]
    return [name for name in names if name in image_processor] + [
        name
        for name in names
        if (name.count("/") == 0 or name.split("/")[0] in folders)
        and name.count("/") <= 1
        and name.endswith(".json")
    ]


def tokenizer_names(names: Collection[str]) -> list[str]:
    """A repository's files of the tokenizer."""
    return [
        name
        for name in names
        if name.startswith(f"{TOKENIZER}/") and name.endswith((".json", ".model"))
    ]


def weight_names(
    names: Collection[str],
    folder: pathlib.Path,
    where: str,
    *,
    variant: str | None,
    components: Collection[str],
) -> list[str]:
    """Those of a model's files that are its weights.

    Args:
        names: of all its files, as paths with slashes.
        folder: where its indexes lie.
        where: what messages call it.
        variant: of the weights.
        components: those that are wanted.

    Raises:
        UnknownNameError: no component has the variant.
        CheckpointError: a component has no weights, or it is not clear which.
    """
    inside = {
        component: [
            name.partition("/")[2]
            for name in names
            if name.startswith(f"{component}/") and name.count("/") == 1
        ]
        for component in components
    }
    _check_variant(inside, where, variant)
    chosen = []
    for component, files in inside.items():
        shards = choose_weights(
            files,
            lambda index, at=folder / component: shards_of_index(at / index),
            f"{where}/{component}",
            plain_name=PLAIN_NAMES[component],
            variant=variant,
        )
        chosen += [f"{component}/{shard}" for shard in shards]
    return chosen


def check_variant(folder: pathlib.Path, variant: str | None, components: Collection[str]) -> None:
    """Refuses a variant that no component of a folder has.

    Args:
        folder: of the model.
        variant: of the weights.
        components: those that the model has.

    Raises:
        UnknownNameError: names those that there are.
    """
    inside = {component: visible_names(folder / component) for component in components}
    _check_variant(inside, str(folder), variant)


def _check_variant(inside: Mapping[str, Collection[str]], where: str, variant: str | None) -> None:
    if variant is None:
        return
    found = {component: variants(files) for component, files in inside.items()}
    without = [component for component, names in found.items() if variant not in names]
    if len(without) == len(found):
        known = sorted(set().union(*found.values()))
        raise UnknownNameError(
            f"variant of {where}", variant, known or ["none but the plain files"]
        )
    if without:
        logger.warning(
            "%s: no variant %s of %s, where the plain files are taken",
            where,
            variant,
            " and ".join(without),
        )


def _read_config(folder: pathlib.Path) -> Mapping[str, Any]:
    """A component's configuration; refuses weights whose numbers only another library makes
    weights."""
    config = read_json(folder / "config.json")
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise CheckpointError(
            f"{folder}/config.json has a quantization_config ({method}), which is not implemented; "
            "take the model's files in bfloat16"
        )
    return config
