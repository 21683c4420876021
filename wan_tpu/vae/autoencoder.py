"""Wan's autoencoder: one encoder and one decoder, in time as in space.

Both work on one video's part on one device, chunk by chunk, and hand on what their layers saw last
(`layers.py`); the split over devices is in `spatial.py`, the loop over chunks in `streaming.py`.
"""

from collections.abc import Mapping
from typing import TypeVar

import jax
from flax import nnx
from jaxtyping import Array, Float

from wan_tpu.vae.config import VaeConfig, decoder_plan, encoder_plan
from wan_tpu.vae.convolution import Picture
from wan_tpu.vae.layers import (
    Convolution,
    NormConvolution,
    Past,
    Result,
    make_layers,
    run_layers,
)
from wan_tpu.vae.plan import Plan
from wan_tpu.vae.rearrange import patchify, unpatchify
from wan_tpu.vae.spatial import SpatialSplit


class Coder(nnx.Module):
    """What encoder and decoder share: a convolution, layers, a norm and a convolution."""

    def __init__(self, plan: Plan, *, split: SpatialSplit, rngs: nnx.Rngs):
        self.conv_in = Convolution(
            plan.in_channels, plan.first_channels, frames=3, size=3, split=split, rngs=rngs
        )
        self.layers = nnx.List(make_layers(plan.layers, split=split, rngs=rngs))
        self.head = NormConvolution(plan.last_channels, plan.out_channels, split=split, rngs=rngs)

    def __call__(self, x: Picture, past: Past) -> tuple[Result, Past]:
        """`[frames, height, width, in_channels]` to `[..., out_channels]`, and the next past."""
        conv_in, layers, head = past or (None, None, None)
        x, conv_in = self.conv_in.causal(x, conv_in)
        x, layers = run_layers(self.layers, x, layers)
        x, head = self.head(x, head)
        return x, (conv_in, layers, head)


class Encoder(nnx.Module):
    """Pixels to the mean and log variance of latents; diffusers' encoder and `quant_conv`."""

    def __init__(self, config: VaeConfig, *, split: SpatialSplit, rngs: nnx.Rngs):
        self.coder = Coder(encoder_plan(config), split=split, rngs=rngs)
        moments = 2 * config.z_dim
        self.patch_size = config.patch_size
        self.quant_conv = Convolution(moments, moments, split=split, rngs=rngs)

    def __call__(
        self, video: Float[Array, "frames height width 3"], past: Past
    ) -> tuple[Float[Array, "latent_frames latent_height latent_width moments"], Past]:
        """Encodes a chunk: 4n + 1 frames at a video's start, then a multiple of four.

        Args:
            video: `[frames, height, width, 3]` in [-1, 1].
            past: what the chunk before returned; None at the start.

        Returns:
            `[latent frames, latent height, latent width, 2 * z_dim]` and the next past.
        """
        x, past = self.coder(patchify(video, self.patch_size), past)
        return self.quant_conv(x), past


class Decoder(nnx.Module):
    """Latents to pixels; diffusers' `post_quant_conv` and decoder."""

    def __init__(self, config: VaeConfig, *, split: SpatialSplit, rngs: nnx.Rngs):
        self.post_quant_conv = Convolution(config.z_dim, config.z_dim, split=split, rngs=rngs)
        self.coder = Coder(decoder_plan(config), split=split, rngs=rngs)
        self.patch_size = config.patch_size

    def __call__(
        self,
        latents: Float[Array, "latent_frames latent_height latent_width z_dim"],
        past: Past,
    ) -> tuple[Float[Array, "frames height width 3"], Past]:
        """Decodes a chunk of any number of latent frames.

        Args:
            latents: `[latent frames, latent height, latent width, z_dim]`, not normalised.
            past: what the chunk before returned; None at the start.

        Returns:
            `[frames, height, width, 3]`, about [-1, 1], and the next past.
        """
        x, past = self.coder(self.post_quant_conv(latents), past)
        return unpatchify(x, self.patch_size), past


Part = TypeVar("Part", Decoder, Encoder)


def with_params(
    make: type[Part], config: VaeConfig, split: SpatialSplit, params: Mapping[str, jax.Array]
) -> Part:
    """`Encoder` or `Decoder` with parameters, which are named within it."""
    graph, state = nnx.split(nnx.eval_shape(lambda: make(config, split=split, rngs=nnx.Rngs(0))))
    paths = {".".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}
    assert paths.keys() == params.keys(), paths.keys() ^ params.keys()
    flat = [(path, nnx.Param(params[name])) for name, path in paths.items()]
    return nnx.merge(graph, nnx.from_flat_state(flat))
