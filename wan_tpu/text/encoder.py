"""UMT5 on the mesh: transformers' encoder blocks through torchax, scanned over stacked weights.

The text encoder runs once per request on 512 tokens, so it has one way of being split whatever the
layout: each weight over all devices, products split like Megatron's where heads and widths divide.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax.sharding import NamedSharding, PartitionSpec

from wan_tpu.checkpoints.config_values import read_fields
from wan_tpu.checkpoints.weights import Weight
from wan_tpu.errors import CheckpointError
from wan_tpu.sharding.layout import AXES
from wan_tpu.sharding.rules import MIN_SHARDED_ELEMENTS
from wan_tpu.torch_bridge import call_module, with_prefix

LAYERS = "encoder.block.*."

EMBEDDING = "shared.weight"
ALIASES = {"encoder.embed_tokens.weight": EMBEDDING}
"""The same table under its second name: transformers ties the two and files hold either."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """Sizes of a `UMT5EncoderModel`; names and defaults are transformers' for UMT5-XXL."""

    vocab_size: int = 256_384
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10_240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "gated-gelu"

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "TextConfig":
        """Reads transformers' configuration.

        Raises:
            CheckpointError: a value that cannot be.
        """
        values = read_fields(cls, config, "text encoder")
        if values.get("feed_forward_proj", "gated-gelu") != "gated-gelu":
            raise CheckpointError(
                f"the text encoder's feed_forward_proj is {values['feed_forward_proj']!r}; UMT5's "
                "gated-gelu is implemented"
            )
        return cls(**values)


@functools.cache
def template(config: TextConfig) -> Any:
    """transformers' encoder with one layer, on the meta device: shapes and code, no numbers."""
    from transformers import UMT5Config, UMT5EncoderModel

    umt5 = UMT5Config(
        **(dataclasses.asdict(config) | {"num_layers": 1, "tie_word_embeddings": True})
    )
    umt5._attn_implementation = "eager"  # the one whose mask and bias are plain additions
    with torch.device("meta"):
        return UMT5EncoderModel(umt5).eval()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoder:
    """The text encoder on a mesh: pure functions of its parameters.

    Attributes:
        config: sizes of the model.
        mesh: all its devices hold a part of each large weight.
        dtype: of weights and activations; norms are float32 inside.
    """

    config: TextConfig
    mesh: Any  # jax.sharding.Mesh, or AbstractMesh where only sizes matter
    dtype: Any

    def weights(self) -> list[Weight]:
        """The parameters, in the order they are loaded."""
        found = []
        for name, parameter in template(self.config).named_parameters():
            if name in ALIASES:
                continue
            stacked = name.startswith("encoder.block.0.")
            pattern = name.replace("encoder.block.0.", LAYERS, 1)
            layers = range(self.config.num_layers) if stacked else (0,)
            shape = tuple(parameter.shape)
            found.append(
                Weight(
                    name=pattern,
                    tensors=tuple(pattern.replace("*", str(layer)) for layer in layers),
                    tensor_shape=shape,
                    dtype=self.dtype,
                    stacked=stacked,
                    spec=self._split(pattern, shape, stacked),
                )
            )
        return found

    def encode(self, params: Mapping[str, jax.Array], ids: jax.Array, mask: jax.Array) -> jax.Array:
        """Text embeddings as diffusers' Wan pipeline makes them.

        Args:
            params: the parameters named in `weights`.
            ids: `[batch, 512]`, int32 token ids.
            mask: `[batch, 512]`, int32, 1 for real tokens.

        Returns:
            `[batch, 512, d_model]`, zero past each prompt's end.
        """
        model = template(self.config)
        hidden = params[EMBEDDING][ids]  # [batch, 512, d_model]
        lowest = jnp.finfo(self.dtype).min
        additive = jnp.where(mask[:, None, None, :] > 0, 0, lowest).astype(self.dtype)

        def layer(hidden: jax.Array, weights: Mapping[str, jax.Array]) -> tuple[jax.Array, None]:
            out = call_module(model.encoder.block[0], weights, hidden, additive)
            out = out[0] if isinstance(out, tuple) else out
            return self._whole(out), None

        hidden, _ = jax.lax.scan(layer, self._whole(hidden), with_prefix(params, LAYERS))
        norm = with_prefix(params, "encoder.final_layer_norm.")
        hidden = call_module(model.encoder.final_layer_norm, norm, hidden)
        return hidden * mask[:, :, None].astype(hidden.dtype)

    def _whole(self, x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec()))

    def _split(self, pattern: str, shape: tuple[int, ...], stacked: bool) -> PartitionSpec:
        """Outputs of the first product of a pair and inputs of the second, over all devices."""
        devices = self.mesh.size
        second = pattern.endswith((".o.weight", ".wo.weight", EMBEDDING))
        dim = 1 if second else 0
        small = math.prod(shape) < MIN_SHARDED_ELEMENTS
        if small or len(shape) < 2 or shape[dim] % devices:
            return PartitionSpec()
        spec: list[Any] = [None, None]
        spec[dim] = AXES
        return PartitionSpec(*([None] * stacked), *spec)
