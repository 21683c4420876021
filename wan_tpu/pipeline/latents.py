"""Latents on their way to the mesh: the seed's noise, and the form of tokens."""

import math

import jax
import numpy as np
import torch
from jaxtyping import Float32

from wan_tpu.geometry import Geometry
from wan_tpu.sharding.mesh import place
from wan_tpu.transformer.patches import patchify

Latents = Float32[np.ndarray, "1 latent_frames latent_height latent_width channels"]
Tokens = Float32[np.ndarray, "1 tokens token_channels"]


def make_noise(seed: int, geometry: Geometry, channels: int) -> Latents:
    """The noise that diffusers' pipelines draw for this seed: torch's CPU generator, float32."""
    return make_noises(seed, geometry, channels, 1)[0]


def make_noises(seed: int, geometry: Geometry, channels: int, count: int) -> list[Latents]:
    """Independent noises of a seed, one draw of torch's CPU generator after the other.

    The first is `make_noise`'s. The others are the fresh noise of steps that renoise, in the order
    of the steps: on every layout, and in every process, the same.
    """
    shape = (1, channels, geometry.latent_frames, geometry.latent_height, geometry.latent_width)
    generator = torch.Generator("cpu").manual_seed(seed)
    draws = (torch.randn(shape, generator=generator, dtype=torch.float32) for _ in range(count))
    return [np.moveaxis(draw.numpy(), 1, -1) for draw in draws]


def mixed_in(seed: int, geometry: Geometry, channels: int, num_steps: int) -> list[Latents]:
    """What each step of a schedule that renoises mixes in.

    The last step leads to sigma 0, where noise has no share: it is given zeros.
    """
    first, *fresh = make_noises(seed, geometry, channels, num_steps)
    return [*fresh, np.zeros_like(first)]


def fresh_noises(
    seed: int, geometry: Geometry, num_steps: int, target: jax.ShapeDtypeStruct
) -> list[jax.Array]:
    """`mixed_in`, in token form on the mesh.

    Args:
        seed: of the request.
        geometry: sizes of the video.
        num_steps: of the run.
        target: tokens of the run, `[1, padded tokens, token_channels]`.
    """
    channels = target.shape[-1] // math.prod(geometry.compression.patch)
    drawn = mixed_in(seed, geometry, channels, num_steps)
    return [place_padded(to_tokens(noise, geometry), target) for noise in drawn]


def to_tokens(latents: Latents, geometry: Geometry) -> Tokens:
    """Latents of any number of frames in token form."""
    return patchify(np.moveaxis(latents, -1, 1), geometry.compression.patch)


def place_padded(
    tokens: Float32[np.ndarray, "samples tokens token_channels"], target: jax.ShapeDtypeStruct
) -> jax.Array:
    """Tokens on the mesh with zeros after them, as many as the target `[samples, n, channels]`."""
    padding = target.shape[1] - tokens.shape[1]
    return place(np.pad(tokens, ((0, 0), (0, padding), (0, 0))), target.sharding)
