"""The parts of a model on a mesh, by its kind: what each computes with and holds on the devices."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from wan_tpu.checkpoints.description import ModelDescription
from wan_tpu.checkpoints.weights import abstract_weights
from wan_tpu.errors import CheckpointError
from wan_tpu.family import IMAGE_ENCODER, TEXT_ENCODER, VAE, Conditioning, ModelKind
from wan_tpu.image.encoder import ImageEncoder, ImageEncoderConfig
from wan_tpu.text.encoder import TextConfig, TextEncoder
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.transformer.denoiser import Denoiser
from wan_tpu.vae.config import VaeConfig
from wan_tpu.vae.streaming import abstract_params
from wan_tpu.vae.weights import DECODER, ENCODER


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One part of a model: what it is, what of it lies on the devices, which stages it runs.

    Attributes:
        module: pure functions of its parameters; of the autoencoder its sizes.
        weights: by name, abstract: shapes, dtypes, how they are split.
        stages: names of the stages that take these weights.
        unread: what the names of tensors begin with that a checkpoint has and nothing needs.
    """

    module: Any
    weights: Mapping[str, jax.ShapeDtypeStruct]
    stages: tuple[str, ...]
    unread: tuple[str, ...] = ()

    @property
    def bytes_per_device(self) -> int:
        """What each device holds of it."""
        return tree_bytes(dict(self.weights))


def tree_bytes(tree: Any) -> int:
    """Bytes on one device of a tree of abstract arrays."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * jnp.dtype(x.dtype).itemsize
        for x in jax.tree.leaves(tree)
    )


def transformer_config(description: ModelDescription) -> TransformerConfig:
    """The sizes of every transformer of a model: experts take turns in the same programs.

    Raises:
        CheckpointError: they differ, or are of a model that is not implemented.
    """
    experts = description.kind.experts
    configs = [TransformerConfig.from_json(description.configs[name]) for name in experts]
    for name, config in zip(experts[1:], configs[1:], strict=True):
        values = dataclasses.asdict(configs[0])
        for field, value in dataclasses.asdict(config).items():
            if value != values[field]:
                raise CheckpointError(
                    f"{name} has {field} {value!r} and {experts[0]} has {values[field]!r}; "
                    "the experts of a model are of the same sizes"
                )
    return configs[0]


def vae_parts(kind: ModelKind) -> tuple[str, ...]:
    """The halves of the autoencoder that a model needs: to encode only where it takes pictures."""
    return (ENCODER, DECODER) if kind.takes else (DECODER,)


def make_components(
    description: ModelDescription, denoiser: Denoiser, vae_dtype: DTypeLike
) -> dict[str, Component]:
    """The parts of a model, on the mesh and in the dtype of its denoiser, in the order they run.

    Args:
        description: of the model.
        denoiser: of its transformers, all of them.
        vae_dtype: of the autoencoder.

    Raises:
        CheckpointError: a configuration is of a model that is not implemented.
    """
    mesh: Any = denoiser.setting.mesh
    kind, configs = description.kind, description.configs
    text_encoder = TextEncoder(
        config=TextConfig.from_json(configs[TEXT_ENCODER]), mesh=mesh, dtype=denoiser.dtype
    )
    vae = VaeConfig.from_json(configs[VAE])
    _check_channels(kind, denoiser.config, vae)
    parts = vae_parts(kind)
    encodes = ("encode-first", "encode-next") if ENCODER in parts else ()
    transformer = Component(
        module=denoiser,
        weights=abstract_weights(denoiser.weights(), mesh),
        stages=("context", "condition", "step")
        if kind.conditioning is Conditioning.CHANNELS
        else ("context", "step"),
    )
    image_encoder = {}
    if kind.has_image_encoder:
        tower = ImageEncoder(
            config=ImageEncoderConfig.from_json(configs[IMAGE_ENCODER]),
            mesh=mesh,
            dtype=denoiser.dtype,
        )
        image_encoder[IMAGE_ENCODER] = Component(
            module=tower,
            weights=abstract_weights(tower.weights(), mesh),
            stages=("image",),
            unread=tower.unread,
        )
    found = {
        **image_encoder,
        TEXT_ENCODER: Component(
            module=text_encoder,
            weights=abstract_weights(text_encoder.weights(), mesh),
            stages=("text",),
        ),
        **dict.fromkeys(kind.experts, transformer),
        VAE: Component(
            module=vae,
            weights=abstract_params(vae, vae_dtype, mesh=mesh, parts=parts),
            stages=(*encodes, "decode-first", "decode-next"),
        ),
    }
    return {name: found[name] for name in kind.components}


def _check_channels(kind: ModelKind, transformer: TransformerConfig, vae: VaeConfig) -> None:
    """Refuses a transformer whose latents are not those of the autoencoder.

    Raises:
        CheckpointError: says how many channels each has.
    """
    expected = {"out_channels": vae.z_dim, "in_channels": vae.z_dim}
    if kind.conditioning is Conditioning.CHANNELS:
        expected["in_channels"] += vae.temporal_compression + vae.z_dim  # a mask, and pictures
    for name, channels in expected.items():
        if getattr(transformer, name) != channels:
            raise CheckpointError(
                f"the transformer's {name} is {getattr(transformer, name)}; {channels} are "
                f"expected of {kind.words} whose autoencoder has {vae.z_dim} latent channels"
            )
