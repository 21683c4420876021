"""Trains the autoencoder of an embedded model: single frames first, then short clips.

Two facts make this affordable on two CPU cores. On a single frame a causal 3-D convolution with a
zero past is a 2-D convolution with the kernel's last temporal tap (a third of the products). And a
whole clip may go through every causal convolution at once instead of chunk by chunk with caches, as
`AutoencoderKLWan.encode` does; only the temporal resamplers need to be told (`whole_clips`), those
of the shortcuts of Wan 2.2's residual autoencoder too. Both are exact, and held by
tests/demo/test_train.py.
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
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AvgDown3D,
    WanCausalConv3d,
    WanResample,
    patchify,
    unpatchify,
)
from torch.nn import functional
from tqdm import tqdm

from wan_tpu.demo import data
from wan_tpu.demo.phases import Inputs, Phase, Run, normal, run_phase

logger = logging.getLogger(__name__)

# The posterior's standard deviation is fixed rather than learned: what the denoiser leaves of noise
# must not show.
LATENT_NOISE = 0.15
# On the mean's square: holds the latents near unit size, where LATENT_NOISE means something.
LATENT_PENALTY = 1e-3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class VaeRecipe:
    """What is trained, on what, in two phases.

    Attributes:
        config: of `AutoencoderKLWan`, besides the latents' mean and deviation.
        world: what the clips show; may be wider than the denoiser's.
        frames: the phase on single frames.
        clips: the phase on whole clips, because the encoder looks back over all of one.
    """

    config: dict[str, Any]
    world: data.World
    frames: Phase
    clips: Phase


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

    Equal to diffusers' chunked way: the first frame passes the temporal resamplers unchanged, an
    upsampler's convolution sees zeros before the second latent, not the first latent, and the
    shortcut averages the first frame by itself.
    """
    resample, average = WanResample.forward, AvgDown3D.forward

    def resample_clip(self, x, feat_cache=None, feat_idx=None):
        assert feat_cache is None
        if self.mode == "upsample3d":
            batch, channels, _, height, width = x.shape
            later = self.time_conv(x[:, :, 1:])  # [batch, 2 * channels, latents - 1, height, width]
            later = later.unflatten(1, (2, channels)).permute(0, 2, 3, 1, 4, 5)
            x = torch.cat([x[:, :, :1], later.reshape(batch, channels, -1, height, width)], dim=2)
        x = resample(self, x)
        if self.mode == "downsample3d":
            x = torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)
        return x

    def average_clip(self, x):
        if self.factor_t == 1:
            return average(self, x)
        return torch.cat([average(self, x[:, :, :1]), average(self, x[:, :, 1:])], dim=2)

    stack = contextlib.ExitStack()
    stack.enter_context(_replaced(WanResample, "forward", resample_clip))
    stack.enter_context(_replaced(AvgDown3D, "forward", average_clip))
    return stack


def make_vae(config: dict[str, Any], seed: int) -> AutoencoderKLWan:
    """A fresh autoencoder whose posterior has the fixed standard deviation `LATENT_NOISE`."""
    torch.manual_seed(seed)
    z_dim = config["z_dim"]
    # The real ones are known when it is trained.
    vae = AutoencoderKLWan(**config, latents_mean=[0.0] * z_dim, latents_std=[1.0] * z_dim)
    posterior: Any = vae.quant_conv
    with torch.no_grad():
        posterior.weight[z_dim:] = 0
        posterior.bias[z_dim:] = 2 * math.log(LATENT_NOISE)
    return vae


def encode_mean(vae: Any, video: torch.Tensor) -> torch.Tensor:
    """The posterior's mean, in one of the two contexts above.

    Args:
        vae: an `AutoencoderKLWan`.
        video: [batch, 3, frames, height, width] in [-1, 1].

    Returns:
        [batch, z_dim, latent_frames, latent_height, latent_width].
    """
    x = patchify(video, vae.config.patch_size or 1)
    return vae.quant_conv(vae.encoder(x))[:, : vae.config.z_dim]


def decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """The video of unnormalised latents, not clamped, in one of the two contexts above."""
    # The first latent is the first chunk's, whatever follows in the same tensor.
    decoded = vae.decoder(vae.post_quant_conv(latents), first_chunk=True)
    return unpatchify(decoded, vae.config.patch_size or 1)


def reconstruction_loss(
    vae: AutoencoderKLWan, video: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """L1 + 2 L2 of the reconstruction from noised latents, plus the latents' penalty.

    Args:
        vae: called without caches, in one of the two contexts above.
        video: [batch, 3, frames, height, width] in [-1, 1].
        noise: [batch, z_dim, latents, latent_height, latent_width], standard normal.
    """
    mean = encode_mean(vae, video)
    error = decode(vae, mean + LATENT_NOISE * noise).float() - video
    return (
        error.abs().mean()
        + 2 * error.square().mean()
        + LATENT_PENALTY * mean.float().square().mean()
    )


def draw(
    scenes: list[data.Scene],
    poses: list[data.Pose],
    world: data.World,
    times: np.ndarray,
    device: str,
) -> torch.Tensor:
    """What `data.make_frames` draws, for a batch and on a device.

    Args:
        scenes: [batch], with
        poses: [batch] theirs.
        world: of all.
        times: [batch, frames], 0 at the start of the way and 1 at its end.
        device: where the pictures are wanted.

    Returns:
        [batch, 3, frames, side, side], float32 in [-1, 1].
    """
    shown = zip(scenes, poses, times, strict=True)
    centers = np.stack([data.make_centers(scene, pose, world, t) for scene, pose, t in shown])
    centers = torch.from_numpy(centers).to(device)
    sizes = torch.tensor([[pose.half_size] for pose in poses], device=device)
    coverage = torch.empty(*centers.shape[:2], world.side, world.side, device=device)
    with torch.device(device):
        for shape in data.SHAPES:
            rows = [row for row, scene in enumerate(scenes) if scene.shape == shape]
            coverage[rows] = data.shape_coverage(
                shape, centers[rows], sizes[rows], world.side, xp=torch
            )
    colors, backgrounds = (
        torch.tensor(values, device=device)[:, :, None, None, None] / 127.5 - 1
        for values in (
            [data.COLORS[scene.color] for scene in scenes],
            [data.BACKGROUNDS[scene.background] for scene in scenes],
        )
    )
    video = backgrounds + coverage[:, None] * (colors - backgrounds)
    return video.contiguous(memory_format=torch.channels_last_3d)


def random_batch(
    rng: np.random.Generator,
    batch: int,
    num_frames: int,
    world: data.World,
    device: str = "cpu",
) -> torch.Tensor:
    """Successive frames of random clips, from a random moment on, as `draw` gives them."""
    scenes = data.all_scenes()
    chosen, poses, times = [], [], []
    for index in rng.integers(len(scenes), size=batch):
        first = rng.integers(world.num_frames - num_frames + 1)
        times.append((first + np.arange(num_frames)) / (world.num_frames - 1))
        chosen.append(scenes[index])
        poses.append(data.random_pose(rng, world))
    return draw(chosen, poses, world, np.stack(times), device)


def train_vae(vae: AutoencoderKLWan, recipe: VaeRecipe, run: Run) -> None:
    """Both phases, in place."""
    with single_frames():
        _run_phase(vae, recipe.frames, recipe.world, run, num_frames=1)
    forget_the_past(vae)
    with whole_clips():
        _run_phase(vae, recipe.clips, recipe.world, run, recipe.world.num_frames)


def _run_phase(vae: Any, phase: Phase, world: data.World, run: Run, num_frames: int) -> None:
    side = world.side // vae.config.scale_factor_spatial
    shape = (phase.batch, vae.config.z_dim, (num_frames - 1) // 4 + 1, side, side)
    compiled = run.compile and run.device == "cpu"
    loss_of_batch = torch.compile(reconstruction_loss) if compiled else reconstruction_loss

    def draw_step(step: int) -> Inputs:
        rng = phase.rng(run.seed, step)
        video = random_batch(rng, phase.batch, num_frames, world, run.device)
        return video, normal(rng, shape, run.device)

    def loss_of(video: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        with torch.autocast(run.device, torch.bfloat16):
            return loss_of_batch(vae, video, noise)

    optimizer = torch.optim.AdamW(vae.parameters(), phase.learning_rate, weight_decay=0)
    run_phase(phase, run, {"vae": vae}, [optimizer], draw_step, loss_of)


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
def encode_clips(
    vae: AutoencoderKLWan, num_clips: int, world: data.World, run: Run
) -> torch.Tensor:
    """The training set of the denoiser: clips of all scenes in turn, as unnormalised latents.

    Returns:
        [num_clips, z_dim, latent_frames, latent_height, latent_width], float32, on the run's
        device; clip i shows scene i modulo 216 of `data.all_scenes()`.
    """
    scenes = data.all_scenes()
    encode = torch.compile(encode_mean) if run.compile and run.device == "cpu" else encode_mean
    batch = 24 if run.device == "cpu" else 96
    latents = []
    with whole_clips():
        starts = range(0, num_clips, batch)
        for start in tqdm(starts, "encoding", disable=not run.progress):
            clips = range(start, min(start + batch, num_clips))
            poses = [
                data.random_pose(np.random.default_rng((run.seed, 2, clip)), world)
                for clip in clips
            ]
            times = np.tile(data.clip_times(world), (len(poses), 1))
            shown = [scenes[clip % len(scenes)] for clip in clips]
            with torch.autocast(run.device, torch.bfloat16):
                latents.append(encode(vae, draw(shown, poses, world, times, run.device)).float())
    return torch.cat(latents)


def normalise(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Writes the latents' mean and deviation per channel into the config and applies them."""
    mean, deviation = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    mean = [round(float(value), 6) for value in mean]
    deviation = [round(float(value), 6) for value in deviation]
    vae.register_to_config(latents_mean=mean, latents_std=deviation)
    wide_mean, wide_deviation = (
        torch.tensor(values, device=latents.device).view(1, -1, 1, 1, 1)
        for values in (mean, deviation)
    )
    return (latents - wide_mean) / wide_deviation


@torch.no_grad()
def psnr_by_pair(
    vae: AutoencoderKLWan, world: data.World, run: Run, clips_per_pair: int
) -> dict[tuple[str, str], tuple[float, float]]:
    """Peak signal to noise in dB for every colour on every background.

    Returns:
        For each pair that of decoded clips, and of the worst clip's first frame.
    """
    rng, result = np.random.default_rng((run.seed, 1)), {}
    for color in data.COLORS:
        for background in data.BACKGROUNDS:
            scenes = [
                scene
                for scene in data.all_scenes()
                if scene.color == color and scene.background == background
            ]
            chosen = [scenes[i] for i in rng.choice(len(scenes), clips_per_pair, replace=False)]
            poses = [data.random_pose(rng, world) for _ in chosen]
            times = np.tile(data.clip_times(world), (len(poses), 1))
            video = draw(chosen, poses, world, times, run.device)
            with whole_clips():
                decoded = decode(vae, encode_mean(vae, video)).clamp(-1, 1)
            error = ((decoded - video) / 2).square()
            worst = error[:, :, 0].mean((1, 2, 3)).max()
            result[color, background] = tuple(
                float(-10 * torch.log10(value)) for value in (error.mean(), worst)
            )
    return result
