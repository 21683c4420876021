"""UMT5 on the mesh: transformers' encoder blocks through torchax, scanned over stacked weights.

The text encoder runs once per request on 512 tokens, so it has one way of being split whatever the
layout: each weight over all devices, products split like Megatron's where heads and widths divide.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import torch
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int32

from wan_tpu.checkpoints.component import TIED_NAMES
from wan_tpu.checkpoints.config_values import read_fields
from wan_tpu.checkpoints.weights import Weight
from wan_tpu.errors import CheckpointError
from wan_tpu.sharding.rules import WHOLE, split_over_all
from wan_tpu.torch_bridge import Params, call_module
from wan_tpu.torch_module import LayeredModule, Placement

Hidden = Float[Array, "batch text d_model"]

EMBEDDING = "shared.weight"


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
def text_module(config: TextConfig) -> LayeredModule:
    """transformers' encoder: names, shapes and code, no numbers."""
    from transformers import UMT5Config, UMT5EncoderModel

    umt5 = UMT5Config(
        **(dataclasses.asdict(config) | {"num_layers": 1, "tie_word_embeddings": True})
    )
    umt5._attn_implementation = "eager"  # the one whose mask and bias are plain additions
    with torch.device("meta"):
        template = UMT5EncoderModel(umt5).eval()
    return LayeredModule(
        template=template,
        layers="encoder.block",
        num_layers=config.num_layers,
        aliases=frozenset(TIED_NAMES),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoder:
    """The text encoder on a mesh: pure functions of its parameters.

    Attributes:
        config: sizes of the model.
        mesh: all its devices hold a part of each large weight.
        dtype: of weights and activations; norms are float32 inside.
    """

    config: TextConfig
    mesh: Mesh | AbstractMesh  # the latter where only sizes matter
    dtype: DTypeLike

    def weights(self) -> list[Weight]:
        """The parameters, in the order they are loaded."""

        def placement(name: str, shape: tuple[int, ...]) -> Placement:
            # Outputs of the first product of a pair and inputs of the second.
            is_second = name.endswith((".o.weight", ".wo.weight", EMBEDDING))
            spec = split_over_all(shape, self.mesh.size, dim=1 if is_second else 0)
            return Placement(dtype=self.dtype, spec=spec)

        return text_module(self.config).weights(placement)

    def encode(
        self,
        params: Params,
        ids: Int32[Array, "batch text"],
        mask: Int32[Array, "batch text"],
        vectors: Float32[Array, "vectors d_model"] | None = None,
        slots: Int32[Array, "batch text"] | None = None,
        *,
        remat: bool = False,
    ) -> Float[Array, "batch text d_model"]:
        """Text embeddings as diffusers' Wan pipeline makes them.

        Args:
            params: the parameters named in `weights`.
            ids: `[batch, 512]`, int32 token ids.
            mask: `[batch, 512]`, int32, 1 for real tokens.
            vectors: `[vectors, d_model]`, float32, of words that were learnt: id `vocab_size + n`
                is row n of them.
            slots: `[batch, 512]`, int32: the vector that comes out in a place whatever the text
                encoder says, or -1.
            remat: compute each layer again in a backward pass, from its input.

        Returns:
            `[batch, 512, d_model]`, zero past each prompt's end.
        """
        module = text_module(self.config)
        hidden = self._rows(params[EMBEDDING], ids, vectors)  # [batch, 512, d_model]
        lowest = jnp.finfo(self.dtype).min
        additive = jnp.where(mask[:, None, None, :] > 0, 0, lowest).astype(self.dtype)

        def layer(hidden: Hidden, weights: Params, _: None) -> tuple[Hidden, None]:
            out = call_module(module.layer, weights, hidden, additive)
            out = out[0] if isinstance(out, tuple) else out
            return self._whole(out), None

        layer = jax.checkpoint(layer) if remat else layer
        hidden, _ = module.scan(layer, self._whole(hidden), params)
        hidden = module.call("encoder.final_layer_norm", params, hidden)
        hidden = hidden * mask[:, :, None].astype(hidden.dtype)
        return hidden if vectors is None or slots is None else put_vectors(hidden, vectors, slots)

    def _rows(
        self,
        table: Float[Array, "vocab d_model"],
        ids: Int32[Array, "batch text"],
        vectors: Float32[Array, "vectors d_model"] | None,
    ) -> Hidden:
        """Rows of the table and, above it, of the vectors; the two are never one array."""
        if vectors is None:
            return table[ids]
        number = ids - self.config.vocab_size
        known = table[jnp.minimum(ids, self.config.vocab_size - 1)]
        new = vectors[jnp.maximum(number, 0)].astype(table.dtype)
        return jnp.where((number >= 0)[:, :, None], new, known)

    def _whole(self, x: Hidden) -> Hidden:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, WHOLE))


def put_vectors(
    hidden: Hidden,
    vectors: Float32[Array, "vectors d_model"],
    slots: Int32[Array, "batch text"],
) -> Hidden:
    """Text embeddings with vectors in the place of some.

    Args:
        hidden: `[batch, 512, d_model]`.
        vectors: `[vectors, d_model]`, float32.
        slots: `[batch, 512]`, int32: the vector of each place, or -1.
    """
    put = vectors[jnp.maximum(slots, 0)].astype(hidden.dtype)
    return jnp.where((slots >= 0)[:, :, None], put, hidden)
