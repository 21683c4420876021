"""Trains the autoencoder of wan-tiny: single frames first, then short clips.

Two facts make this affordable on two CPU cores. On a single frame a causal 3-D convolution with a
zero past is a 2-D convolution with the kernel's last temporal tap (a third of the products). And a
whole clip may go through every causal convolution at once instead of chunk by chunk with caches, as
`AutoencoderKLWan.encode` does; only the temporal resamplers need to be told (`whole_clips`). Both
are exact, and held by tests/demo/test_train.py.
"""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanResample
from torch.nn import functional
from tqdm import tqdm

from wan_tpu.demo import data
from wan_tpu.demo.phases import Phase, Run, normal, run_phase

logger = logging.getLogger(__name__)

# 2.05 M parameters, 4.1 MB in bfloat16: half of the 8 MB that the model folder may take.
Z_DIM = 16
VAE_CONFIG: dict[str, Any] = {
    "base_dim": 16,
    "z_dim": Z_DIM,
    "dim_mult": [1, 2, 2, 4],
    "num_res_blocks": 1,
}

# The posterior's standard deviation is fixed rather than learned: what the denoiser leaves of noise
# must not show.
LATENT_NOISE = 0.15
# On the mean's square: holds the latents near unit size, where LATENT_NOISE means something.
LATENT_PENALTY = 1e-3


FRAMES_PHASE = Phase(name="vae-frames", steps=3000, batch=32, learning_rate=2e-3)
# 1e-3 diverges here (lab). Whole clips, because the encoder looks back over all of one.
CLIPS_PHASE = Phase(name="vae-clips", steps=500, batch=4, learning_rate=3e-4)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VaeRecipe:
    """The two phases."""

    frames: Phase = FRAMES_PHASE
    clips: Phase = CLIPS_PHASE
    clip_frames: int = data.CLIP_FRAMES


@contextlib.contextmanager
def _replaced(owner: type, name: str, function) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, original)


def single_frames():
    """Context in which every `WanCausalConv3d` takes one frame, by a 2-D convolution."""

    def forward(self, x, cache_x=None):
        assert x.shape[2] == 1
        assert cache_x is None
        stride, padding = self.stride[1:], self._padding[0]
        return functional.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, stride, padding)[
            :, :, None
        ]

    return _replaced(WanCausalConv3d, "forward", forward)


def whole_clips():
    """Context in which encoder and decoder take 4 k + 1 frames (k + 1 latents) at once.

    Equal to diffusers' chunked way: the first frame passes the temporal resamplers unchanged, and
    an upsampler's convolution sees zeros before the second latent, not the first latent.
    """
    original = WanResample.forward

    def forward(self, x, feat_cache=None, feat_idx=None):
        assert feat_cache is None
        if self.mode == "upsample3d":
            batch, channels, _, height, width = x.shape
            later = self.time_conv(x[:, :, 1:])  # [batch, 2 * channels, latents - 1, height, width]
            later = later.unflatten(1, (2, channels)).permute(0, 2, 3, 1, 4, 5)
            x = torch.cat([x[:, :, :1], later.reshape(batch, channels, -1, height, width)], dim=2)
        x = original(self, x)
        if self.mode == "downsample3d":
            x = torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)
        return x

    return _replaced(WanResample, "forward", forward)


def make_vae(seed: int) -> AutoencoderKLWan:
    """A fresh autoencoder whose posterior has the fixed standard deviation `LATENT_NOISE`."""
    torch.manual_seed(seed)
    vae = AutoencoderKLWan(**VAE_CONFIG)
    posterior: Any = vae.quant_conv
    with torch.no_grad():
        posterior.weight[Z_DIM:] = 0
        posterior.bias[Z_DIM:] = 2 * math.log(LATENT_NOISE)
    return vae


def reconstruction_loss(
    vae: AutoencoderKLWan, video: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """L1 + 2 L2 of the reconstruction from noised latents, plus the latents' penalty.

    Args:
        vae: called without caches, in one of the two contexts above.
        video: [batch, 3, frames, height, width] in [-1, 1].
        noise: [batch, z_dim, latents, latent_height, latent_width], standard normal.
    """
    mean = vae.quant_conv(vae.encoder(video))[:, : noise.shape[1]]
    latents = mean + LATENT_NOISE * noise
    error = vae.decoder(vae.post_quant_conv(latents)).float() - video
    return (
        error.abs().mean()
        + 2 * error.square().mean()
        + LATENT_PENALTY * mean.float().square().mean()
    )


def to_video(frames: np.ndarray) -> torch.Tensor:
    """[batch, frames, height, width, 3] in [0, 1] to channels first in [-1, 1]."""
    video = torch.from_numpy(frames).permute(0, 4, 1, 2, 3) * 2 - 1
    return video.contiguous(memory_format=torch.channels_last_3d)


def random_batch(rng: np.random.Generator, batch: int, num_frames: int) -> torch.Tensor:
    """Successive frames of random clips, from a random moment on, as `to_video` gives them."""
    scenes, clips = data.all_scenes(), []
    for index in rng.integers(len(scenes), size=batch):
        first = rng.integers(data.CLIP_FRAMES - num_frames + 1)
        times = (first + np.arange(num_frames)) / (data.CLIP_FRAMES - 1)
        clips.append(data.make_frames(scenes[index], data.random_pose(rng), times))
    return to_video(np.stack(clips))


def train_vae(vae: AutoencoderKLWan, recipe: VaeRecipe, run: Run) -> None:
    """Both phases, in place."""
    optimizer = torch.optim.AdamW(vae.parameters(), recipe.frames.learning_rate, weight_decay=0)
    with single_frames():
        loss_of_step = _loss_of_step(vae, recipe.frames, run, num_frames=1)
        run_phase(recipe.frames, run, {"vae": vae}, [optimizer], loss_of_step)
    forget_the_past(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), recipe.clips.learning_rate, weight_decay=0)
    with whole_clips():
        loss_of_step = _loss_of_step(vae, recipe.clips, run, num_frames=recipe.clip_frames)
        run_phase(recipe.clips, run, {"vae": vae}, [optimizer], loss_of_step)


def _loss_of_step(vae: AutoencoderKLWan, phase: Phase, run: Run, num_frames: int):
    loss_of_batch = torch.compile(reconstruction_loss) if run.compile else reconstruction_loss
    size, latents = data.CLIP_SIZE // 8, (num_frames - 1) // 4 + 1

    def loss_of_step(step: int) -> torch.Tensor:
        rng = phase.rng(run.seed, step)
        video = random_batch(rng, phase.batch, num_frames)
        noise = normal(rng, (phase.batch, Z_DIM, latents, size, size))
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of_batch(vae, video, noise)

    return loss_of_step


@torch.no_grad()
def forget_the_past(vae: AutoencoderKLWan) -> None:
    """Makes an autoencoder of frames one of clips: past taps zero, temporal resamplers copies.

    Single-frame training never touches the past taps; with their random values the clips' picture
    is lost at once.
    """
    for module in vae.modules():
        if isinstance(module, WanCausalConv3d) and module.kernel_size[0] == 3:
            module.weight[:, :, :2] = 0
    for module in vae.modules():
        if isinstance(module, WanResample) and hasattr(module, "time_conv"):
            convolution: Any = module.time_conv
            copies = convolution.out_channels // convolution.in_channels
            convolution.weight.zero_()
            convolution.bias.zero_()
            identity = torch.eye(convolution.in_channels).repeat(copies, 1)
            convolution.weight[:, :, -1, 0, 0] = identity


def round_to_bfloat16(module: torch.nn.Module) -> None:
    """Leaves float32 weights that bfloat16 holds exactly: what is measured is what is shipped."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.bfloat16())


@torch.no_grad()
def encode_clips(vae: AutoencoderKLWan, num_clips: int, run: Run, batch: int = 24) -> torch.Tensor:
    """The training set of the denoiser: clips of all scenes in turn, as unnormalised latents.

    Returns:
        [num_clips, z_dim, latent_frames, latent_height, latent_width], float32; clip i shows scene
        i modulo 216 of `data.all_scenes()`.
    """
    scenes = data.all_scenes()
    encode = torch.compile(_encode) if run.compile else _encode
    latents = []
    with whole_clips():
        starts = range(0, num_clips, batch)
        for start in tqdm(starts, "encoding", disable=not run.progress):
            clips = [
                data.make_clip(scenes[i % len(scenes)], np.random.default_rng((run.seed, 2, i)))
                for i in range(start, min(start + batch, num_clips))
            ]
            with torch.autocast("cpu", torch.bfloat16):
                latents.append(encode(vae, to_video(np.stack(clips))).float())
    return torch.cat(latents)


def _encode(vae: AutoencoderKLWan, video: torch.Tensor) -> torch.Tensor:
    return vae.quant_conv(vae.encoder(video))[:, :Z_DIM]


def normalise(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Writes the latents' mean and deviation per channel into the config and applies them."""
    mean, deviation = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    mean = torch.tensor([round(float(value), 6) for value in mean])
    deviation = torch.tensor([round(float(value), 6) for value in deviation])
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=deviation.tolist())
    shape = (1, -1, 1, 1, 1)
    return (latents - mean.view(shape)) / deviation.view(shape)


@torch.no_grad()
def psnr_by_pair(
    vae: AutoencoderKLWan, seed: int, clips_per_pair: int
) -> dict[tuple[str, str], float]:
    """Peak signal to noise in dB of decoded clips, for every colour on every background."""
    rng, result = np.random.default_rng((seed, 1)), {}
    for color in data.COLORS:
        for background in data.BACKGROUNDS:
            scenes = [
                scene
                for scene in data.all_scenes()
                if scene.color == color and scene.background == background
            ]
            chosen = [scenes[i] for i in rng.choice(len(scenes), clips_per_pair, replace=False)]
            video = to_video(np.stack([data.make_clip(scene, rng) for scene in chosen]))
            with whole_clips():
                decoded = vae.decoder(vae.post_quant_conv(_encode(vae, video))).clamp(-1, 1)
            error = ((decoded - video) / 2).square().mean()
            result[color, background] = float(-10 * torch.log10(error))
    return result
