"""What a checkpoint says about its transformer (diffusers' `transformer/config.json`)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from wan_tpu.checkpoints.config_values import read_fields
from wan_tpu.errors import CheckpointError

_CLASS_NAME = "WanTransformer3DModel"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Sizes of a `WanTransformer3DModel`; names and defaults are diffusers'.

    Attributes:
        patch_size: latents per token along (frames, height, width).
        in_channels: of the latents and, after them, of what pictures add to every latent position.
        out_channels: of the latents.
        freq_dim: channels of the sinusoidal timestep embedding.
        text_dim: channels of the text embeddings.
        eps: of every norm.
        image_dim: channels of the image encoder's tokens; None for a model that reads none.
        added_kv_proj_dim: channels of what an image's keys and values are made from; `dim` where
            the model reads images.
        rope_max_seq_len: longest axis of the token grid.
        pos_embed_seq_len: image tokens that have a learned position, those of all pictures
            together; None where their order says nothing.
    """

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    qk_norm: str = "rms_norm_across_heads"
    eps: float = 1e-6
    image_dim: int | None = None
    added_kv_proj_dim: int | None = None
    rope_max_seq_len: int = 1024
    pos_embed_seq_len: int | None = None

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "TransformerConfig":
        """Reads diffusers' configuration.

        Raises:
            CheckpointError: a model of the family that this class does not implement, or a value
                that cannot be.
        """
        of = config.get("_class_name", _CLASS_NAME)
        if of != _CLASS_NAME or config.get("vace_layers") is not None:
            what = of if of != _CLASS_NAME else f"one of VACE (vace_layers={config['vace_layers']})"
            raise CheckpointError(
                f"the transformer is {what}, which is not implemented; a {_CLASS_NAME} is"
            )
        values = read_fields(cls, config, "transformer")
        if "in_channels" in values and config.get("out_channels", 0) is None:
            values["out_channels"] = values["in_channels"]
        made = cls(**values)
        made._check()
        return made

    def _check(self) -> None:
        """Refuses sizes that do not fit each other."""
        if self.condition_channels < 0:
            raise CheckpointError(
                f"the transformer has {self.in_channels} input and {self.out_channels} output "
                "channels; the input's must be at least the output's"
            )
        expected = None if self.image_dim is None else self.dim
        if self.added_kv_proj_dim != expected:
            raise CheckpointError(
                f"the transformer has image_dim={self.image_dim} and added_kv_proj_dim="
                f"{self.added_kv_proj_dim}; with this image_dim the latter must be {expected}"
            )
        if self.pos_embed_seq_len is not None and self.image_dim is None:
            raise CheckpointError(
                f"the transformer has pos_embed_seq_len={self.pos_embed_seq_len} and no image_dim, "
                "so nothing that it is the position of"
            )

    def to_json(self) -> dict[str, Any]:
        """The arguments of diffusers' `WanTransformer3DModel`."""
        return dataclasses.asdict(self)

    @property
    def dim(self) -> int:
        """Width of the residual stream."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def token_channels(self) -> int:
        """Latent values in one token, ordered (patch frames, rows, columns, channels)."""
        return self.out_channels * math.prod(self.patch_size)

    @property
    def condition_channels(self) -> int:
        """Values that pictures add to one token, in the same order; 0 for a model without."""
        return (self.in_channels - self.out_channels) * math.prod(self.patch_size)
