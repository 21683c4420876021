"""One component's tensors from whatever file has them, under the names that this library knows.

A file is recognised by its tensors and not by its own name: in whose names they are, and what
stands in front of all of them.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping

from wan_tpu.checkpoints.eight_bit import as_weights
from wan_tpu.checkpoints.original_names import (
    Names,
    text_encoder_names,
    transformer_names,
    vae_names,
)
from wan_tpu.checkpoints.renamed import RenamedSource
from wan_tpu.checkpoints.source import SafetensorsSource, TensorSource
from wan_tpu.errors import CheckpointError
from wan_tpu.family import IMAGE_ENCODER, TEXT_ENCODER, TRANSFORMER, TRANSFORMER_2, VAE

COMPONENTS = (TEXT_ENCODER, IMAGE_ENCODER, TRANSFORMER, TRANSFORMER_2, VAE)
"""All that a model can have; which of them it has its kind says."""

PLAIN_NAMES = {
    TEXT_ENCODER: "model",
    IMAGE_ENCODER: "model",
    TRANSFORMER: "diffusion_pytorch_model",
    TRANSFORMER_2: "diffusion_pytorch_model",
    VAE: "diffusion_pytorch_model",
}
TIED_NAMES = {"encoder.embed_tokens.weight": "shared.weight"}
"""The text encoder's table under its second name: transformers ties the two, files hold either."""

UNREAD = {
    # Some files of image-to-video models have a norm of queries for pictures. Nothing computes it,
    # in diffusers no more than in Wan's own code: the picture's keys meet the text's queries.
    TRANSFORMER: re.compile(r"(?:.*\.)?(?:norm_added_q|norm_q_img)\.weight"),
    # The way from CLIP's last layer to what is compared with texts, which Wan does not go, and
    # numbers that older releases of transformers wrote down: 0, 1, 2, ...
    IMAGE_ENCODER: re.compile(r"(?:.*\.)?(?:visual_projection\.weight|embeddings\.position_ids)"),
}
"""Tensors that are in files and in no model, by component: left out, whatever they are."""


def _kept(names: Iterable[str]) -> Names:
    return {name: name for name in names}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How a component's tensors may be called.

    Attributes:
        of: `diffusers` (or transformers), or `original`.
        signature: a tensor that only these names have.
        to_diffusers: from all names, without what stands in front, to diffusers'.
    """

    of: str
    signature: str
    to_diffusers: Callable[[Iterable[str]], Names]


NAMINGS: Mapping[str, tuple[Naming, ...]] = {
    TRANSFORMER: (
        Naming(of="diffusers", signature="blocks.0.attn1.to_q.weight", to_diffusers=_kept),
        Naming(
            of="original",
            signature="blocks.0.self_attn.q.weight",
            to_diffusers=transformer_names,
        ),
    ),
    TEXT_ENCODER: (
        Naming(
            of="transformers",
            signature="encoder.block.0.layer.0.SelfAttention.q.weight",
            to_diffusers=_kept,
        ),
        Naming(
            of="original",
            signature="blocks.0.attn.q.weight",
            to_diffusers=text_encoder_names,
        ),
    ),
    IMAGE_ENCODER: (
        Naming(
            of="transformers",
            signature="encoder.layers.0.self_attn.q_proj.weight",
            to_diffusers=_kept,
        ),
    ),
    VAE: (
        Naming(of="diffusers", signature="decoder.conv_in.weight", to_diffusers=_kept),
        Naming(of="original", signature="decoder.conv1.weight", to_diffusers=vae_names),
    ),
}

PREFIXES: Mapping[str, tuple[str, ...]] = {
    TRANSFORMER: (
        "",
        "model.diffusion_model.",
        "diffusion_model.",
        "model.",
        "transformer.",
        "module.",
        "_orig_mod.",
    ),
    TEXT_ENCODER: (
        "",
        "text_encoders.umt5xxl.transformer.",
        "umt5xxl.transformer.",
        "cond_stage_model.umt5xxl.transformer.",
        "model.",
        "text_encoder.",
    ),
    IMAGE_ENCODER: ("", "vision_model.", "image_encoder.vision_model.", "model.vision_model."),
    VAE: ("", "first_stage_model.", "vae.", "model."),
}
"""What may stand in front of all of a component's names: ComfyUI's files of a whole model put
another one in front of each component, trainers and `torch.compile` their own."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A component in a file.

    Attributes:
        component: which.
        prefix: what stands in front of its names.
        naming: whose names they are then.
    """

    component: str
    prefix: str
    naming: Naming


def find_components(names: Collection[str]) -> dict[str, Found]:
    """The components whose tensors are among these names, by name; any transformer is the first."""
    found = {}
    for component, namings in NAMINGS.items():
        for naming in namings:
            for prefix in PREFIXES[component]:
                if prefix + naming.signature in names and component not in found:
                    found[component] = Found(component=component, prefix=prefix, naming=naming)
    return found


def open_component(
    component: str, path: pathlib.Path, *, variant: str | None = None
) -> TensorSource:
    """The tensors of a component, by diffusers' names, as weights.

    Args:
        component: one of `COMPONENTS`.
        path: its folder, or a file of its own or of a whole model.
        variant: see `wan_tpu.checkpoints.files.weight_files`.

    Raises:
        CheckpointError: the files cannot be read, are of no form that is known, or have tensors
            that belong to no component.
    """
    stored = SafetensorsSource(path, plain_name=PLAIN_NAMES[component], variant=variant)
    return in_diffusers_names(component, as_weights(_without_unread(component, stored)))


def _form(component: str) -> str:
    """The component whose names it has: both experts are transformers."""
    return TRANSFORMER if component == TRANSFORMER_2 else component


def _without_unread(component: str, source: TensorSource) -> TensorSource:
    """A source without the tensors that nothing reads, of whatever dtype they are."""
    unread = UNREAD.get(_form(component))
    if unread is None or not any(map(unread.fullmatch, source.shapes)):
        return source
    return RenamedSource(source, {n: n for n in source.shapes if not unread.fullmatch(n)})


def in_diffusers_names(component: str, source: TensorSource) -> TensorSource:
    """The same tensors by the names that diffusers has for them.

    Args:
        component: one of `COMPONENTS`.
        source: of whichever names; unknown ones are kept, for `check_tensors` to name, and those
            that nothing reads (`UNREAD`) are left out.

    Raises:
        CheckpointError: two tensors have one name, or one belongs to no component.
    """
    aliases = TIED_NAMES if component == TEXT_ENCODER else {}
    source = _without_unread(component, source)
    all_found = find_components(source.shapes)
    found = all_found.get(_form(component))
    prefix = found.prefix if found else ""
    inside = [name.removeprefix(prefix) for name in source.shapes if name.startswith(prefix)]
    _check_all_belong(source, [each.prefix for each in all_found.values()], component, prefix)
    translated = found.naming.to_diffusers(inside) if found else _kept(inside)
    names: dict[str, str] = {}
    for theirs, ours in translated.items():
        if ours in aliases and aliases[ours] in translated.values():
            continue  # the first name is there, too
        ours = aliases.get(ours, ours)
        if ours in names:
            raise CheckpointError(
                f"{component} in {source.description}: {names[ours]} and {prefix + theirs} are the "
                f"same tensor, {ours}; keep one of them"
            )
        names[ours] = prefix + theirs
    if len(names) == len(source.shapes) and all(a == b for a, b in names.items()):
        return source
    return RenamedSource(source, names)


def _check_all_belong(
    source: TensorSource, prefixes: list[str], component: str, prefix: str
) -> None:
    """Refuses a file of a whole model with tensors that belong to none of its components."""
    if not prefix:
        return
    for name in source.shapes:
        if not name.startswith(tuple(each for each in prefixes if each)):
            raise CheckpointError(
                f"{component} in {source.description}: unexpected {name}, beside tensors whose "
                f"names begin with {prefix}"
            )
