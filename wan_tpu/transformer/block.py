"""One transformer block: diffusers' parts with a modulation that may differ between tokens.

diffusers' own block takes all six vectors of every token as one array, and XLA then stores it: the
5B's step at 1280x704 and 121 frames moves 87 GB through a v6e-8's chip instead of 56 (2026-11-26,
dp2-sp4), 232 where the compiler may split it as it likes. Here each vector is chosen where it is
multiplied or added, and nothing of it is stored.
"""

from typing import Any

import torch
from jaxtyping import Float

from wan_tpu.geometry import Geometry
from wan_tpu.torch_bridge import to_jax, to_torch
from wan_tpu.transformer.conditions import row_of_each_token
from wan_tpu.transformer.processors import Context, Positions, TorchTokens

TorchVectors = Float[torch.Tensor, "samples tokens_or_1 dim"]
"""`[samples, 1, dim]` for all tokens, or `[samples, tokens, dim]`; one sample stands for all."""


class TransformerBlock(torch.nn.Module):
    """diffusers' `WanTransformerBlock`, whose parts and parameters it takes over by their names."""

    def __init__(self, original: Any, geometry: Geometry):
        """`geometry` says which tokens are of the first latent frame."""
        super().__init__()
        self.norm1, self.attn1 = original.norm1, original.attn1
        self.norm2, self.attn2 = original.norm2, original.attn2
        self.norm3, self.ffn = original.norm3, original.ffn
        self.scale_shift_table = original.scale_shift_table
        self._geometry = geometry

    def forward(
        self,
        hidden: TorchTokens,
        context: Context,
        modulation: Float[torch.Tensor, "samples timesteps 6 dim"],
        positions: Positions,
    ) -> TorchTokens:
        """`[batch, tokens, dim]` to the same; norms and sums in float32, as diffusers has them.

        Args:
            hidden: the residual stream.
            context: of this layer.
            modulation: of one sample for the whole batch, or of each; one timestep for all tokens,
                or one for the first frame's and one for the others.
            positions: what self-attention is told.
        """
        dtype, tokens = hidden.dtype, hidden.shape[1]
        rows = self.scale_shift_table + modulation.float()  # [samples, timesteps, 6, dim]
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (
            self._of_each_token(rows[:, :, i], tokens) for i in range(6)
        )
        normed = self.norm1(hidden.float()) * (1 + scale) + shift
        attended = self.attn1(normed.to(dtype), None, None, positions)
        hidden = (hidden.float() + attended * gate).to(dtype)

        normed = self.norm2(hidden.float()).to(dtype)
        hidden = hidden + self.attn2(normed, context, None, None)

        normed = self.norm3(hidden.float()) * (1 + ffn_scale) + ffn_shift
        fed_forward = self.ffn(normed.to(dtype))
        return (hidden.float() + fed_forward.float() * ffn_gate).to(dtype)

    def _of_each_token(
        self, rows: Float[torch.Tensor, "samples timesteps dim"], tokens: int
    ) -> TorchVectors:
        """One of the six vectors."""
        return to_torch(row_of_each_token(to_jax(rows), tokens, self._geometry))
