"""What a checkpoint says about its transformer (diffusers' `transformer/config.json`)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from wan_tpu.checkpoints.config_values import read_fields
from wan_tpu.errors import CheckpointError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Sizes of a `WanTransformer3DModel`; names and defaults are diffusers'.

    Attributes:
        patch_size: latents per token along (frames, height, width).
        freq_dim: channels of the sinusoidal timestep embedding.
        text_dim: channels of the text embeddings.
        eps: of every norm.
        rope_max_seq_len: longest axis of the token grid.
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
    rope_max_seq_len: int = 1024

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "TransformerConfig":
        """Reads diffusers' configuration.

        Raises:
            CheckpointError: a model of the family that this class does not implement, or a value
                that cannot be.
        """
        for name in ("image_dim", "added_kv_proj_dim", "pos_embed_seq_len"):
            if config.get(name) is not None:
                raise CheckpointError(
                    f"the transformer has {name}={config[name]}: "
                    "image-to-video is not implemented yet"
                )
        values = read_fields(cls, config, "transformer")
        if values.get("in_channels", 16) != values.get("out_channels", 16):
            raise CheckpointError(
                "a transformer with more input than output channels is not implemented yet"
            )
        return cls(**values)

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
        return self.in_channels * math.prod(self.patch_size)
