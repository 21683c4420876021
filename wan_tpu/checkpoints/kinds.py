"""Which kind of model a folder holds: by its `model_index.json` and its transformers alone.

The oddities of Wan's converter are known here: it writes a `boundary_ratio` into folders of one
transformer, too, and calls TI2V-5B a `WanPipeline`, though it takes pictures.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from wan_tpu import family
from wan_tpu.checkpoints.config_values import read_fields
from wan_tpu.checkpoints.distilled import DMD_PIPELINE
from wan_tpu.errors import CheckpointError
from wan_tpu.family import (
    IMAGE_ENCODER,
    TEXT_ENCODER,
    TRANSFORMER,
    TRANSFORMER_2,
    VAE,
    Conditioning,
    ModelKind,
)

TEXT_PIPELINES = ("WanPipeline", "WanVideoToVideoPipeline", DMD_PIPELINE)
IMAGE_PIPELINE = "WanImageToVideoPipeline"
PIPELINES = (*TEXT_PIPELINES, IMAGE_PIPELINE)
"""Classes of diffusers' whose folders can be run, and FastVideo's."""

_OTHER_PIPELINES = {
    "WanVACEPipeline": "VACE",
    "WanAnimatePipeline": "Animate",
}
FIRST_FRAME_CHANNELS = 48
"""Latent channels of TI2V-5B, the only one with so many."""

MASK_CHANNELS = 4
"""Between the latents' and the pictures' input channels: a frame of latents is four of a video."""

_KINDS: Mapping[tuple[Conditioning, bool, bool, int], ModelKind] = {
    # How pictures enter, by an image encoder, with positions of their own; transformers.
    (Conditioning.NONE, False, False, 1): family.TEXT_TO_VIDEO,
    (Conditioning.NONE, False, False, 2): family.TEXT_TO_VIDEO_A14B,
    (Conditioning.CHANNELS, True, False, 1): family.IMAGE_TO_VIDEO,
    (Conditioning.CHANNELS, True, True, 1): family.FIRST_LAST_FRAME_TO_VIDEO,
    (Conditioning.CHANNELS, False, False, 2): family.IMAGE_TO_VIDEO_A14B,
    (Conditioning.FIRST_FRAME, False, False, 1): family.TEXT_IMAGE_TO_VIDEO,
}

TRANSFORMER_DEFAULTS: Mapping[str, Any] = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13_824,
    "num_layers": 40,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "eps": 1e-6,
    "rope_max_seq_len": 1024,
}
"""What diffusers' `WanTransformer3DModel` takes for a number that its file does not have."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Transformer:
    """What of a transformer's configuration tells its kind; diffusers' names and defaults."""

    in_channels: int = TRANSFORMER_DEFAULTS["in_channels"]
    out_channels: int = TRANSFORMER_DEFAULTS["out_channels"]
    image_dim: int | None = None
    pos_embed_seq_len: int | None = None


def expert_names(index: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The transformers of a model, by `model_index.json`: a second one if and only if it is named.

    Args:
        index: its contents.
        where: what messages call it.

    Raises:
        CheckpointError: it is of a pipeline that is not implemented, or has no transformer.
    """
    pipeline = index.get("_class_name")
    if pipeline not in PIPELINES:
        if pipeline is None:
            what = "names no _class_name"
        else:
            known = _OTHER_PIPELINES.get(str(pipeline))
            what = f"is of a {pipeline}" + (f" ({known})" if known else "")
        raise CheckpointError(
            f"{where} {what}; {TEXT_PIPELINES[0]} and {IMAGE_PIPELINE} are implemented"
        )
    has_second = not _is_absent(index.get(TRANSFORMER_2))
    if TRANSFORMER in index and _is_absent(index[TRANSFORMER]):
        raise CheckpointError(
            f"{where} has no {TRANSFORMER}"
            + (f", only {TRANSFORMER_2}; both experts are needed" if has_second else "")
        )
    return (TRANSFORMER, TRANSFORMER_2) if has_second else (TRANSFORMER,)


def read_kind(
    index: Mapping[str, Any], transformers: Mapping[str, Mapping[str, Any]], where: str
) -> ModelKind:
    """What a model is made of and takes.

    Args:
        index: contents of `model_index.json`.
        transformers: their configurations by name, those of `expert_names`.
        where: what messages call the index.

    Raises:
        CheckpointError: the files contradict each other, or are of another kind of model.
    """
    _check_experts_are_equal(transformers)
    config = transformers[TRANSFORMER]
    if config.get("vace_layers"):
        raise CheckpointError(f"{where}: the transformer is one of VACE, which is not implemented")
    sizes = _Transformer(**read_fields(_Transformer, config, TRANSFORMER))
    conditioning = _conditioning(sizes, bool(index.get("expand_timesteps")))
    has_encoder, has_positions = sizes.image_dim is not None, sizes.pos_embed_seq_len is not None
    kind = _KINDS.get((conditioning, has_encoder, has_positions, len(transformers)))
    described = (
        f"a transformer of {sizes.in_channels} input and {sizes.out_channels} output channels "
        f"{'with' if has_encoder else 'without'} image_dim"
        + (", with pos_embed_seq_len" if has_positions else "")
        + (", which has a second one beside it" if len(transformers) > 1 else "")
    )
    if kind is None:
        raise CheckpointError(f"{where} is of no kind of model that is implemented: {described}")
    wanted = {Conditioning.NONE: TEXT_PIPELINES, Conditioning.CHANNELS: (IMAGE_PIPELINE,)}
    if index["_class_name"] not in wanted.get(conditioning, PIPELINES):
        raise CheckpointError(
            f"{where} is of a {index['_class_name']}, but has {described}, as a "
            f"{wanted[conditioning][0]} has"
        )
    for component in kind.components:
        if component in index and _is_absent(index[component]):
            raise CheckpointError(f"{where} has no {component}, which {kind.words} needs")
    if kind.boundary_ratio is None:
        return kind
    return dataclasses.replace(kind, boundary_ratio=_boundary_ratio(index, kind, where))


_JOINTS = (
    # What one component makes and the transformer takes: the names and defaults of both.
    (TEXT_ENCODER, "d_model", 4096, "text_dim"),
    (IMAGE_ENCODER, "hidden_size", 768, "image_dim"),
    (VAE, "z_dim", 16, "out_channels"),
)


def check_components_fit(configs: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Refuses components of different models in one folder: each may be sound by itself.

    Args:
        configs: by component.
        where: what messages call the folder.

    Raises:
        CheckpointError: one makes other channels than the transformer takes.
    """
    transformer = _complete(configs[TRANSFORMER])
    for component, name, default, wanted in _JOINTS:
        made = configs.get(component, {}).get(name)
        made = default if made is None else made
        if component in configs and made != transformer.get(wanted):
            raise CheckpointError(
                f"{where}: the {component}'s {name} is {made} and the transformer's {wanted} is "
                f"{transformer.get(wanted)}; they are of different models"
            )


def _is_absent(entry: Any) -> bool:
    """Whether an entry of the index names no class: diffusers writes two nulls."""
    return not entry or entry == [None, None]


def _conditioning(sizes: _Transformer, expands_timesteps: bool) -> Conditioning:
    if expands_timesteps or sizes.in_channels == sizes.out_channels == FIRST_FRAME_CHANNELS:
        return Conditioning.FIRST_FRAME
    if sizes.in_channels == sizes.out_channels:
        return Conditioning.NONE
    expected = 2 * sizes.out_channels + MASK_CHANNELS
    if sizes.in_channels != expected:
        raise CheckpointError(
            f"the transformer has {sizes.in_channels} input and {sizes.out_channels} output "
            f"channels; as many input channels are implemented, or {expected}: the latents', a "
            f"mask's {MASK_CHANNELS} and the pictures'"
        )
    return Conditioning.CHANNELS


def _boundary_ratio(index: Mapping[str, Any], kind: ModelKind, where: str) -> float | None:
    ratio = index.get("boundary_ratio")
    if ratio is None:
        return kind.boundary_ratio
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1:
        raise CheckpointError(
            f"{where}: boundary_ratio must lie between 0 and 1, got {ratio!r}; "
            f"{kind.boundary_ratio} is Wan's"
        )
    return float(ratio)


def _check_experts_are_equal(transformers: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses experts of different sizes, which could not take turns."""
    if TRANSFORMER_2 not in transformers:
        return
    first, second = (_complete(transformers[name]) for name in (TRANSFORMER, TRANSFORMER_2))
    for key in sorted(first.keys() | second.keys()):
        if first.get(key) != second.get(key):
            raise CheckpointError(
                f"{TRANSFORMER_2} has {key} = {second.get(key)!r} and {TRANSFORMER} has "
                f"{first.get(key)!r}; the two experts of a model must be of the same sizes"
            )


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with diffusers' defaults; where it comes from, and null, left out."""
    values = {
        name: value
        for name, value in config.items()
        if not name.startswith("_") and value is not None
    }
    return {**TRANSFORMER_DEFAULTS, **values}
