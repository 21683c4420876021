"""CLIP's vision tower on the mesh: transformers' blocks through torchax, scanned over the layers.

What Wan 2.1's image-to-video models take of a picture is the state before the last layer, so that
layer, the norm after it and the projection are neither made nor loaded. Like the text encoder, the
tower runs once per request and is split in one way whatever the layout.
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
from jaxtyping import Array, Float

from wan_tpu.checkpoints.config_values import read_fields
from wan_tpu.checkpoints.weights import Weight
from wan_tpu.errors import CheckpointError
from wan_tpu.sharding.rules import WHOLE, split_over_all
from wan_tpu.torch_bridge import Params, call_module
from wan_tpu.torch_module import LayeredModule, Placement

Hidden = Float[Array, "pictures tokens hidden_size"]

ACTIVATIONS = ("gelu", "quick_gelu")
"""The exact GELU of ViT-H, which Wan uses, and OpenAI's x * sigmoid(1.702 x)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageEncoderConfig:
    """Sizes of a CLIP vision tower; names and defaults are those of `CLIPVisionConfig`.

    A configuration leaves out what has its default, so these are transformers' (ViT-B/32), not
    those of Wan's ViT-H/14.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "ImageEncoderConfig":
        """Reads transformers' configuration of the tower, or of a whole CLIP around it.

        Raises:
            CheckpointError: a value that cannot be.
        """
        inner = config.get("vision_config")
        return cls(**read_fields(cls, config if inner is None else inner, "image encoder"))

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            raise CheckpointError(
                f"the image encoder's hidden_act is {self.hidden_act!r}; implemented: "
                f"{', '.join(ACTIVATIONS)}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise CheckpointError(
                f"the image encoder's hidden_size {self.hidden_size} is no multiple of its "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.num_hidden_layers < 2:
            raise CheckpointError(
                "the image encoder has 1 layer; the state before the last is taken, so at least 2 "
                "are needed"
            )
        if self.num_channels != 3 or self.patch_size > self.image_size:
            raise CheckpointError(
                f"the image encoder takes pictures of {self.num_channels} channels and "
                f"{self.image_size} pixels in patches of {self.patch_size}; 3 channels, and "
                "patches no larger than the picture, are expected"
            )

    @property
    def num_tokens(self) -> int:
        """Of a picture: one for each patch, and the class token before them; 257 for ViT-H/14."""
        return (self.image_size // self.patch_size) ** 2 + 1


class _LayerNorm(torch.nn.Module):
    """A `torch.nn.LayerNorm` of the template, in float32 inside, as torch's own kernels are.

    torchax would subtract the mean in bfloat16, and some of ViT-H's states are large.
    """

    def __init__(self, original: torch.nn.LayerNorm):
        super().__init__()
        self.normalized_shape, self.eps = original.normalized_shape, original.eps
        self.weight, self.bias = original.weight, original.bias

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`[..., hidden_size]` to the same."""
        weight, bias = self.weight.float(), self.bias.float()
        shape, eps = self.normalized_shape, self.eps
        out = torch.nn.functional.layer_norm(input.float(), shape, weight, bias, eps)
        return out.to(input.dtype)


@functools.cache
def vision_module(config: ImageEncoderConfig) -> LayeredModule:
    """transformers' tower: names, shapes and code, no numbers."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes: dict[str, Any] = dataclasses.asdict(config) | {"num_hidden_layers": 1}
    clip = CLIPVisionConfig(**sizes)
    clip._attn_implementation = "eager"
    with torch.device("meta"):
        template = CLIPVisionModel(clip).eval()
    for name, part in list(template.named_modules()):
        if isinstance(part, torch.nn.LayerNorm):
            template.set_submodule(name, _LayerNorm(part))
    after = frozenset(n for n, _ in template.named_parameters() if n.startswith("post_layernorm."))
    assert after, "transformers has renamed the norm after the layers"
    return LayeredModule(
        template=template,
        layers="encoder.layers",
        num_layers=config.num_hidden_layers - 1,
        aliases=after,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageEncoder:
    """The tower on a mesh: pure functions of its parameters.

    Attributes:
        config: sizes of the model.
        mesh: all its devices hold a part of each large weight.
        dtype: of weights and activations; norms and softmax are float32 inside.
    """

    config: ImageEncoderConfig
    mesh: Mesh | AbstractMesh  # the latter where only sizes matter
    dtype: DTypeLike

    @property
    def unread(self) -> tuple[str, ...]:
        """What the names of tensors begin with that a checkpoint has and this does not read."""
        return ("post_layernorm.", f"encoder.layers.{self.config.num_hidden_layers - 1}.")

    def weights(self) -> list[Weight]:
        """The parameters, in the order they are loaded; names as in `CLIPVisionModel`."""

        def placement(name: str, shape: tuple[int, ...]) -> Placement:
            # Outputs of the first product of a pair and inputs of the second.
            is_second = name.endswith((".out_proj.weight", ".fc2.weight"))
            spec = split_over_all(shape, self.mesh.size, dim=1 if is_second else 0)
            return Placement(dtype=self.dtype, spec=spec)

        return vision_module(self.config).weights(placement)

    def encode(
        self, params: Params, pixels: Float[Array, "pictures size size 3"]
    ) -> Float[Array, "pictures tokens hidden_size"]:
        """What diffusers' Wan pipelines take of pictures: `hidden_states[-2]`.

        Args:
            params: the parameters named in `weights`.
            pixels: `[pictures, image_size, image_size, 3]`, as `for_image_encoder` makes them.

        Returns:
            `[pictures, num_tokens, hidden_size]`, the class token first; no norm after the layers.
        """
        module = vision_module(self.config)
        positions = jnp.arange(self.config.num_tokens)[None]  # a buffer, in no checkpoint
        first = {**params, "embeddings.position_ids": positions}
        channels_first = pixels.astype(self.dtype).transpose(0, 3, 1, 2)
        hidden = module.call("embeddings", first, channels_first)
        hidden = self._whole(module.call("pre_layrnorm", params, hidden))

        def layer(hidden: Hidden, weights: Params, _: None) -> tuple[Hidden, None]:
            return self._whole(call_module(module.layer, weights, hidden, None)), None

        return module.scan(layer, hidden, params)[0]

    def _whole(self, x: Hidden) -> Hidden:
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, WHOLE))
