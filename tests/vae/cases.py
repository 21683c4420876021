"""diffusers' autoencoder at small sizes, with weights that make a lively picture."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import AutoencoderKLWan

from wan_tpu.vae.config import VaeConfig
from wan_tpu.vae.weights import vae_state_from_tensors

Z_DIM = 4
LATENT_FRAMES = 5

CONFIGS = {
    "wan": {"base_dim": 8, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2},
    "narrow top": {"base_dim": 16, "dim_mult": [1, 2, 3, 2], "num_res_blocks": 1},
    "three levels": {
        "base_dim": 8,
        "dim_mult": [1, 2, 4],
        "num_res_blocks": 1,
        "temperal_downsample": [True, True],
    },
    "time halved once": {
        "base_dim": 8,
        "decoder_base_dim": 16,
        "dim_mult": [1, 1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, False],
    },
    "wan 2.2": {
        "base_dim": 8,
        "decoder_base_dim": 16,
        "dim_mult": [1, 2, 4, 4],
        "num_res_blocks": 2,
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "scale_factor_spatial": 16,
    },
    "shortcuts alone": {
        "base_dim": 8,
        "dim_mult": [1, 1, 2, 2],  # a decoder's level with half the channels doubles time, too
        "num_res_blocks": 1,
        "temperal_downsample": [True, True, False],
        "is_residual": True,
    },
    "patches alone": {
        "base_dim": 8,
        "dim_mult": [1, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [True],
        "patch_size": 4,
        "in_channels": 48,
        "out_channels": 48,
    },
}


def quick_jit(function):
    """`jax.jit` that compiles in half the time: these programs run once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """diffusers' model, and what it makes of one video.

    Attributes:
        model: diffusers' own.
        config: its configuration as ours.
        params: its weights as ours, float32.
        latents: normalised, `[1, 5, height, width, channels]`.
    """

    model: AutoencoderKLWan
    config: VaeConfig
    params: dict[str, jax.Array]
    latents: np.ndarray

    @functools.cached_property
    def decoded(self) -> np.ndarray:
        """What diffusers makes of the latents, `[frames, height, width, 3]` in [-1, 1]."""
        scale = np.asarray(self.config.latents_std, np.float32)
        shift = np.asarray(self.config.latents_mean, np.float32)
        with torch.no_grad():
            z = torch.tensor(np.moveaxis(self.latents * scale + shift, -1, 1))
            decoded = self.model.decode(z, return_dict=False)[0][0].numpy()
        assert decoded.std() > 0.05, "a flat picture would prove nothing"
        return np.moveaxis(decoded, 0, -1)

    def frames(self, latent_frames: int) -> int:
        """Frames of the video that so many latent frames make."""
        return 1 + (latent_frames - 1) * self.config.temporal_compression


@functools.cache
def make_case(name: str, height: int = 4, width: int = 6) -> Case:
    """The configuration `name`, decoding latents of this size."""
    torch.manual_seed(0)
    model = AutoencoderKLWan(
        z_dim=Z_DIM,
        latents_mean=[0.1 * n - 0.2 for n in range(Z_DIM)],
        latents_std=[1.0 + 0.3 * n for n in range(Z_DIM)],
        **CONFIGS[name],
    ).eval()
    for parameter_name, parameter in model.named_parameters():
        if "gamma" in parameter_name:
            parameter.data.normal_(1.0, 0.3)
        elif parameter_name.endswith("bias"):
            parameter.data.normal_(0.0, 0.1)
    config = VaeConfig.from_json(model.config)
    tensors = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    rng = np.random.default_rng(1)
    latents = rng.normal(size=(1, LATENT_FRAMES, height, width, Z_DIM)).astype(np.float32)
    return Case(
        model=model,
        config=config,
        params={
            key: jnp.asarray(array)
            for key, array in vae_state_from_tensors(config, tensors, np.float32).items()
        },
        latents=latents,
    )


def to_bytes(video: np.ndarray) -> np.ndarray:
    """diffusers' own rule for a video in [-1, 1]."""
    return ((video / 2 + 0.5).clip(0, 1) * 255).round().astype(np.uint8)


def assert_same_bytes(ours: np.ndarray, expected: np.ndarray) -> None:
    """Equal, but for one byte in a thousand whose float lies within rounding of a half."""
    assert ours.dtype == expected.dtype == np.uint8
    assert ours.shape == expected.shape
    difference = np.abs(ours.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3  # measured: up to 5e-5
