"""From a model's name to its files and configurations; no weights are read here.

A name is `wan-tiny` or `wan-tiny-ti2v` (in the package), a folder in diffusers format, a hub id,
one of the `KNOWN_MODELS`, whose configurations are here so that sizes can be shown offline, or what
else people have of those: one file of the transformer, Wan's original folder, ComfyUI's files in a
folder. A model of the hub may be of one commit, branch or tag: `owner/name@revision`; else it is
the newest.
"""

import dataclasses
import errno
import logging
import pathlib
from collections.abc import Collection

from wan_tpu.checkpoints.defaults import log_origins, wan_origins
from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.checkpoints.diffusers_folder import (
    INDEX_FILE,
    TOKENIZER,
    check_variant,
    config_names,
    is_diffusers_folder,
    read_folder,
    tokenizer_names,
    weight_names,
)
from wan_tpu.checkpoints.files import some
from wan_tpu.checkpoints.hub import Repository
from wan_tpu.checkpoints.known import (
    KNOWN_MODELS,
    WAN_NEGATIVE_PROMPT,
    WAN_TINY,
    WAN_TINY_TI2V,
    KnownModel,
    embedded_folders,
    known_by_hub_id,
)
from wan_tpu.checkpoints.loose_files import (
    LooseModel,
    read_file,
    read_loose_folder,
    require_transformer,
    which_expert,
)
from wan_tpu.checkpoints.strangers import describe_names, refuse_name
from wan_tpu.errors import CheckpointError, UnknownNameError
from wan_tpu.family import IMAGE_ENCODER, TEXT_ENCODER, TRANSFORMER_2, VAE, ModelKind

__all__ = [
    "KNOWN_MODELS",
    "WAN_NEGATIVE_PROMPT",
    "WAN_TINY",
    "WAN_TINY_TI2V",
    "KnownModel",
    "ModelDescription",
    "describe_model",
    "open_model",
]

logger = logging.getLogger(__name__)

LONGEST_NAME = 200
"""Characters; hub ids have at most 96, and a message need not be longer."""
_IN_WORDS = {
    TEXT_ENCODER: "text encoder",
    IMAGE_ENCODER: "image encoder",
    TRANSFORMER_2: "second transformer",
    VAE: "autoencoder",
}


def describe_model(name: str, variant: str | None = None) -> ModelDescription:
    """A model's configurations; weights are neither read nor downloaded.

    Args:
        name: see above.
        variant: of the weights, noted in the description.

    Raises:
        UnknownNameError: nothing is called so.
        CheckpointError: its files are not those of a Wan model that is implemented.
    """
    if name.partition("@")[0] in KNOWN_MODELS:
        return _described(name, KNOWN_MODELS[name.partition("@")[0]], variant)
    return _find(name, variant, with_weights=False)


def open_model(
    name: str, variant: str | None = None, parts: Collection[str] | None = None
) -> ModelDescription:
    """A model with all its files here, downloaded from the hub if they were not.

    Args:
        name: see above.
        variant: of the weights, for example `fp16`: the files that diffusers would take for it. A
            component without it has its plain files taken.
        parts: of a model of the hub, the components whose weights are needed, and `tokenizer` where
            it is; None for all of them.

    Raises:
        UnknownNameError: nothing is called so, or no component has the variant.
        CheckpointError: files are missing, cannot be had, or are of another kind of model.
    """
    known, at, revision = name.partition("@")
    if known in KNOWN_MODELS:
        source = f"{KNOWN_MODELS[known].hub_id}{at}{revision}"
        model = _from_hub(name, source, variant, with_weights=True, parts=parts)
    else:
        model = _find(name, variant, with_weights=True, parts=parts)
    if model.revision is not None:
        hint = "" if revision == model.revision else f"; {known}@{model.revision} keeps it there"
        logger.info("model %s is at the hub's commit %s%s", known, model.revision, hint)
    log_origins(name, model.defaults, model.defaults_from)
    return model


def _find(
    name: str,
    variant: str | None,
    *,
    with_weights: bool,
    parts: Collection[str] | None = None,
) -> ModelDescription:
    """A model that is not called by a known one's name."""
    embedded = embedded_folders()
    if name in embedded:
        return _from_folder(name, embedded[name], variant)
    try:
        path = pathlib.Path(name).expanduser()
        if name and path.is_dir():
            return _from_any_folder(name, path, variant, with_weights=with_weights)
        if name and path.is_file() and path.suffix.lower() == ".safetensors":
            return _from_file(name, path, variant, with_weights=with_weights)
        if name:
            refuse_name(name, path)
    except RuntimeError:
        pass  # ~somebody, who has no account here
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise CheckpointError(f"{name} cannot be read: {error.strerror}") from None
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and len(name) <= LONGEST_NAME:
        return _from_hub(name, name, variant, with_weights=with_weights, parts=parts)
    known = [*embedded, *KNOWN_MODELS, "a folder in diffusers format", "a hub id like owner/name"]
    shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
    raise UnknownNameError("model", shown, known)


def _from_folder(name: str, folder: pathlib.Path, variant: str | None) -> ModelDescription:
    model = read_folder(name, folder, variant=variant)
    check_variant(folder, variant, model.kind.components)
    return model


def _from_any_folder(
    name: str, folder: pathlib.Path, variant: str | None, *, with_weights: bool
) -> ModelDescription:
    """A folder in diffusers format, or of files that make a model."""
    if not is_diffusers_folder(folder):
        loose = read_loose_folder(folder)
        if loose is not None and is_diffusers_folder(folder.parent):
            raise CheckpointError(f"{folder} is one part of a model; give {folder.parent}")
        if loose is not None:
            return _completed(name, folder, loose, variant, with_weights=with_weights)
    return _from_folder(name, folder, variant)


def _from_file(
    name: str, path: pathlib.Path, variant: str | None, *, with_weights: bool
) -> ModelDescription:
    """A transformer of its own: instead of that of the folder around it, or of a public model."""
    for folder in (path.parent, path.parent.parent):
        if is_diffusers_folder(folder):
            require_transformer(path)
            model = _from_folder(name, folder, variant)
            expert = which_expert(path, model.kind)
            logger.info("%s: everything but the %s is from %s", name, expert, folder)
            return dataclasses.replace(model, files={expert: path})
    return _completed(name, None, read_file(path), variant, with_weights=with_weights)


def _completed(
    name: str,
    folder: pathlib.Path | None,
    loose: LooseModel,
    variant: str | None,
    *,
    with_weights: bool,
) -> ModelDescription:
    """Loose files, with what they lack from the public model that they are of."""
    embedded = embedded_folders()
    if loose.known in embedded:
        origin = loose.known
        model = _from_folder(name, embedded[loose.known], variant)
        lacking = _lacking(model.kind, loose)
    else:
        known = KNOWN_MODELS[loose.known]
        origin = known.hub_id
        lacking = _lacking(known.kind, loose)
        if with_weights and lacking:
            pickles = _pickle_hint(loose)
            in_words = " and no ".join(_IN_WORDS.get(part, part) for part in lacking)
            try:
                model = _from_hub(name, origin, variant, with_weights=True, parts=lacking)
            except CheckpointError as error:
                raise CheckpointError(f"{name} has no {in_words}{pickles}; {error}") from None
        else:
            model = _described(name, known, variant)
    if lacking:
        in_words = ", ".join(_IN_WORDS.get(part, part) for part in lacking)
        logger.info("%s is a %s: %s from %s", name, loose.known, in_words, origin)
    parts = (*model.kind.components, TOKENIZER)
    files = {part: path for part, path in loose.files.items() if part in parts}
    model = dataclasses.replace(model, files=files)
    return model if model.folder or not with_weights else dataclasses.replace(model, folder=folder)


def _lacking(kind: ModelKind, loose: LooseModel) -> list[str]:
    """The components, and the tokenizer, that are not among loose files."""
    return [part for part in (*kind.components, TOKENIZER) if part not in loose.files]


def _pickle_hint(loose: LooseModel) -> str:
    if not loose.pickles:
        return ""
    return (
        f" that can be used ({some(list(loose.pickles))}: pickle files can run code; convert them "
        "to safetensors, or take those of the repository in diffusers format)"
    )


def _described(name: str, known: KnownModel, variant: str | None) -> ModelDescription:
    return ModelDescription(
        name=name,
        folder=None,
        kind=known.kind,
        configs=known.configs,
        defaults=known.defaults,
        defaults_from=wan_origins(),
        variant=variant,
    )


def _from_hub(
    name: str,
    source: str,
    variant: str | None,
    *,
    with_weights: bool,
    parts: Collection[str] | None = None,
) -> ModelDescription:
    """A hub repository, `owner/name[@revision]`, from the cache where its files are there.

    Args:
        name: as the user wrote it.
        source: of the hub.
        variant: of the weights.
        with_weights: whether all files are needed, or the configurations alone.
        parts: of which the weights, or the tokenizer, are needed; None for all.
    """
    repository = Repository(source)
    if repository.names is None:
        folder = repository.cached_folder()
        names: Collection[str] = [
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        ]
    else:
        names = repository.names
        if INDEX_FILE not in names:
            where = f"the hub's {repository.hub_id}"
            twin = known_by_hub_id(f"{repository.hub_id}-Diffusers")
            what = describe_names(where, names, twin=None if twin is None else twin.hub_id)
            raise CheckpointError(f"{INDEX_FILE} is missing: {what}")
        folder = repository.fetch(config_names(names), "the configurations")
    official = known_by_hub_id(repository.hub_id)
    model = read_folder(name, folder, variant=variant, official=official)
    if not with_weights:
        return model
    if parts is None:
        parts = (*model.kind.components, TOKENIZER)
    try:
        wanted = weight_names(
            names,
            folder,
            repository.hub_id,
            variant=variant,
            components=[component for component in model.kind.components if component in parts],
        )
    except CheckpointError as error:
        if not repository.unreachable:
            raise
        why = f"in the cache; the hub cannot be asked: {repository.unreachable}"
        raise CheckpointError(f"{error} {why}") from None
    if TOKENIZER in parts:
        wanted += tokenizer_names(names)
    if repository.names is not None:
        repository.fetch(wanted, "the weights")
    return model
