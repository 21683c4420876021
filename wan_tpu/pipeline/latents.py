"""Latents on their way to the mesh: the seed's noise, and the form of tokens."""

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
    shape = (1, channels, geometry.latent_frames, geometry.latent_height, geometry.latent_width)
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(shape, generator=generator, dtype=torch.float32).numpy()
    return np.moveaxis(noise, 1, -1)


def to_tokens(latents: Latents, geometry: Geometry) -> Tokens:
    """Latents of any number of frames in token form."""
    return patchify(np.moveaxis(latents, -1, 1), geometry.compression.patch)


def place_padded(tokens: Tokens, target: jax.ShapeDtypeStruct) -> jax.Array:
    """Tokens on the mesh with zeros after them, as many as the target `[1, n, channels]` has."""
    padding = target.shape[1] - tokens.shape[1]
    return place(np.pad(tokens, ((0, 0), (0, padding), (0, 0))), target.sharding)
