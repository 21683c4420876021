"""Which known model a transformer is of, by its tensors alone."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from wan_tpu.checkpoints.files import read_json
from wan_tpu.checkpoints.kinds import TRANSFORMER_DEFAULTS
from wan_tpu.checkpoints.known import KNOWN_MODELS, choose_by_name, embedded_folders
from wan_tpu.checkpoints.source import TensorSource
from wan_tpu.errors import CheckpointError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """What tells one transformer of the family from another; 0 for what it has not."""

    dim: int
    in_channels: int
    num_layers: int
    ffn_dim: int
    text_dim: int
    image_dim: int
    pos_embed_seq_len: int

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "_Sizes":
        """By diffusers' `transformer/config.json`."""
        config = {**TRANSFORMER_DEFAULTS, **config}
        return cls(
            dim=config["num_attention_heads"] * config["attention_head_dim"],
            in_channels=config["in_channels"],
            num_layers=config["num_layers"],
            ffn_dim=config["ffn_dim"],
            text_dim=config["text_dim"],
            image_dim=config.get("image_dim") or 0,
            pos_embed_seq_len=config.get("pos_embed_seq_len") or 0,
        )

    @classmethod
    def of_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> "_Sizes":
        """By the shapes of diffusers' tensors; 0 where one lacks or is of other dimensions."""

        def size(name: str, dim: int) -> int:
            shape = shapes.get(name, ())
            return shape[dim] if dim < len(shape) else 0

        layers = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
        image_embedder = "condition_embedder.image_embedder"
        return cls(
            dim=size("patch_embedding.weight", 0),
            in_channels=size("patch_embedding.weight", 1),
            num_layers=len(layers),
            ffn_dim=size("blocks.0.ffn.net.0.proj.weight", 0),
            text_dim=size("condition_embedder.text_embedder.linear_1.weight", 1),
            image_dim=size(f"{image_embedder}.norm1.weight", 0),
            pos_embed_seq_len=size(f"{image_embedder}.pos_embed", 1),
        )

    def __str__(self) -> str:
        image = f", image width {self.image_dim}" if self.image_dim else ""
        return (
            f"{self.num_layers} layers, width {self.dim}, feed-forward width {self.ffn_dim}{image} "
            f"and {self.in_channels} input channels"
        )


def recognise_transformer(source: TensorSource, *, num_experts: int = 1, called: str = "") -> str:
    """Which known model a transformer is of, by its tensors' shapes.

    Args:
        source: by diffusers' names.
        num_experts: of the model, 2 where it is known to be one of two. The experts of a model of
            two have the shapes of others' only transformer.
        called: the file's name, which decides between models of equal shapes.

    Returns:
        A name of `KNOWN_MODELS` or of an embedded model.

    Raises:
        CheckpointError: it is of another model; says of which, as far as that can be seen.
    """
    shapes, what = source.shapes, source.description
    if any(name.startswith("vace_blocks.") for name in shapes):
        raise CheckpointError(f"{what} is a transformer of VACE, which is not implemented")
    sizes = _Sizes.of_shapes(shapes)
    alike = [name for name, expected in _known_sizes().items() if sizes == expected]
    fitting = [name for name in alike if _num_experts(name) == num_experts]
    public = {name: KNOWN_MODELS[name] for name in fitting if name in KNOWN_MODELS}
    if public:
        chosen = choose_by_name(list(public.values()), called)
        return next(name for name, known in public.items() if known is chosen)
    if fitting:
        return fitting[0]
    if not alike:
        raise CheckpointError(
            f"{what} is a transformer of {sizes}, which is none of {', '.join(KNOWN_MODELS)}; give "
            "the folder in diffusers format that it is from"
        )
    if num_experts > 1:
        raise CheckpointError(f"{what} is a transformer of {alike[0]}, which has no experts")
    raise CheckpointError(
        f"{what} is one of the two experts of {alike[0]}, and its name does not say which; it must "
        "have high_noise or low_noise in it"
    )


def _known_sizes() -> dict[str, _Sizes]:
    configs = {name: known.transformer for name, known in KNOWN_MODELS.items()}
    for name, folder in embedded_folders().items():
        configs[name] = read_json(folder / "transformer" / "config.json")
    return {name: _Sizes.of_config(config) for name, config in configs.items()}


def _num_experts(name: str) -> int:
    return len(KNOWN_MODELS[name].kind.experts) if name in KNOWN_MODELS else 1
