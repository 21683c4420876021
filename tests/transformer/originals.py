"""diffusers' own transformer at small random sizes, and ours on a mesh with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import WanTransformer3DModel

from wan_tpu.attention.choice import parse_attention
from wan_tpu.checkpoints.source import ArraySource
from wan_tpu.checkpoints.weights import load_weights
from wan_tpu.geometry import Geometry
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.transformer.denoiser import Denoiser
from wan_tpu.transformer.patches import patchify
from wan_tpu.transformer.processors import AttentionSetting

GARBAGE = 100.0
"""What lies in padding tokens, and must never matter."""


def make_original(config: TransformerConfig) -> WanTransformer3DModel:
    """diffusers' model with weights large enough that every part of it matters."""
    torch.manual_seed(0)
    model = WanTransformer3DModel(**config.to_json()).eval()
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.15)
    return model


def make_ours(
    model: WanTransformer3DModel,
    config: TransformerConfig,
    layout: Layout,
    attention: str = "reference",
) -> tuple[Denoiser, dict[str, jax.Array]]:
    """Our denoiser in float32 on the first devices, and its parameters: those of `model`."""
    mesh = make_mesh(layout, jax.devices()[: layout.num_devices])
    choice = parse_attention(attention)
    setting = AttentionSetting(
        mesh=mesh, layout=layout, implementation=choice.name, gate=choice.gate
    )
    denoiser = Denoiser(config=config, setting=setting, dtype=jnp.float32)
    source = ArraySource({name: t.numpy() for name, t in model.state_dict().items()})
    return denoiser, load_weights("transformer", denoiser.weights(), source, mesh)


def padded(latents: torch.Tensor, denoiser: Denoiser, geometry: Geometry) -> np.ndarray:
    """Latents, or channels like them, as `[1, padded tokens, channels]`."""
    tokens = patchify(latents.numpy(), denoiser.config.patch_size)
    padding = denoiser.padded_tokens(geometry) - tokens.shape[1]
    return np.pad(tokens, ((0, 0), (0, padding), (0, 0)), constant_values=GARBAGE)
