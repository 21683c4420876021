"""One transformer block: diffusers' parts with a modulation that may differ between tokens.

diffusers' own block takes all six vectors of every token as one array, and XLA then stores it: the
5B's step at 1280x704 and 121 frames moves 87 GB through a v6e-8's chip instead of 56 (2026-11-26,
dp2-sp4), 232 where the compiler may split it as it likes. Here each vector is chosen where it is
multiplied or added, and nothing of it is stored.
"""

from typing import Any

import jax
import jax.numpy as jnp
import torch
from jaxtyping import Array, Float

from wan_tpu.geometry import Geometry
from wan_tpu.torch_bridge import to_jax, to_torch
from wan_tpu.transformer.conditions import first_frame_tokens, row_of_each_token
from wan_tpu.transformer.gathering import GatherAhead
from wan_tpu.transformer.norms import Norm, layer_norm, layer_norm_in_one_pass
from wan_tpu.transformer.processors import AttentionSetting, Context, Positions, TorchTokens

TorchGathered = Float[torch.Tensor, "3 channels features"]
"""Weights for the next block (`gathering.AHEAD`)."""

TorchVectors = Float[torch.Tensor, "samples tokens_or_1 dim"]
"""`[samples, 1, dim]` for all tokens, or `[samples, tokens, dim]`; one sample stands for all."""


class TransformerBlock(torch.nn.Module):
    """diffusers' `WanTransformerBlock`, whose parts and parameters it takes over by their names."""

    def __init__(
        self,
        original: Any,
        geometry: Geometry,
        setting: AttentionSetting,
        ahead: GatherAhead | None = None,
    ):
        """Takes the parts over.

        Args:
            original: diffusers' block.
            geometry: says which tokens are of the first latent frame.
            setting: what runs it.
            ahead: gathers weights for the next block; None where it does so itself.
        """
        super().__init__()
        self.norm1, self.attn1 = original.norm1, original.attn1
        self.norm2, self.attn2 = original.norm2, original.attn2
        self.norm3, self.ffn = original.norm3, original.ffn
        self.scale_shift_table = original.scale_shift_table
        self._geometry, self._setting, self._ahead = geometry, setting, ahead

    def forward(
        self,
        hidden: TorchTokens,
        context: Context,
        modulation: Float[torch.Tensor, "samples timesteps 6 dim"],
        positions: Positions,
        next_parts: TorchGathered | None = None,
    ) -> TorchTokens | tuple[TorchTokens, TorchGathered]:
        """`[batch, tokens, dim]` to the same; norms and sums in float32, as diffusers has them.

        Args:
            hidden: the residual stream.
            context: of this layer.
            modulation: of one sample for the whole batch, or of each; one timestep for all tokens,
                or one for the first frame's and one for the others.
            positions: what self-attention is told.
            next_parts: of the next block's weights, what devices hold; given, they are gathered
                and come out, too.
        """
        dtype, tokens = hidden.dtype, hidden.shape[1]
        rows = to_jax(self.scale_shift_table + modulation.float())  # [samples, timesteps, 6, dim]
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (rows[:, :, i] for i in range(6))
        norm = self._modulated(self.norm1, scale, shift)
        attended = self.attn1(hidden, None, norm, positions)
        hidden = (hidden.float() + attended * self._of_each_token(gate, tokens)).to(dtype)

        hidden = hidden + self.attn2(hidden, context, self._affine(self.norm2), None)

        norm = self._modulated(self.norm3, ffn_scale, ffn_shift)
        normed = to_torch(self._normalise(to_jax(hidden), norm))
        next_weights = None
        if next_parts is None or self._ahead is None:
            fed_forward = self.ffn(normed)
        else:
            *first, last = self.ffn.net
            wide = to_jax(torch.nn.Sequential(*first)(normed))
            # Else XLA gathers them behind attention, where its result's exchange has the links.
            wide, parts = jax.lax.optimization_barrier((wide, to_jax(next_parts)))
            next_weights = self._ahead.gather(parts)
            fed_forward = last(to_torch(wide))
        gated = fed_forward.float() * self._of_each_token(ffn_gate, tokens)
        hidden = (hidden.float() + gated).to(dtype)
        return hidden if next_weights is None else (hidden, to_torch(next_weights))

    def _of_each_token(
        self, rows: Float[Array, "samples timesteps dim"], tokens: int
    ) -> TorchVectors:
        """One of the six vectors."""
        return to_torch(row_of_each_token(rows, tokens, self._geometry))

    def _modulated(
        self,
        norm: Any,
        scale: Float[Array, "samples timesteps dim"],
        shift: Float[Array, "samples timesteps dim"],
    ) -> Norm:
        """A norm without weights of its own, and the modulation after it."""
        first_tokens = first_frame_tokens(self._geometry)
        return Norm(scale=1 + scale, shift=shift, eps=norm.eps, first_tokens=first_tokens)

    def _affine(self, norm: Any) -> Norm | None:
        """A norm with weights; None of a model that has none here."""
        if isinstance(norm, torch.nn.Identity):
            return None
        scale, shift = (to_jax(x)[None, None].astype(jnp.float32) for x in (norm.weight, norm.bias))
        return Norm(scale=scale, shift=shift, eps=norm.eps)

    def _normalise(
        self, hidden: Float[Array, "batch tokens dim"], norm: Norm
    ) -> Float[Array, "batch tokens dim"]:
        """What the feed-forward takes; for int8 XLA rounds it in the pass that normalises."""
        is_plain = self.ffn.net[0].proj.is_plain
        if is_plain and self._setting.is_token_major and self._setting.layout.tp == 1:
            return layer_norm_in_one_pass(hidden, norm, mesh=self._setting.concrete_mesh)
        return layer_norm(hidden, norm)
