"""Distils an embedded model to four steps: `python -m wan_tpu.demo.distill --work FOLDER`.

The teacher is the model as its requests run it by default, UniPC with guidance. Its trajectories
are kept at the four noise levels of the preset and at the end. The student is the same transformer
with factors of low rank, without guidance: from the teacher's latents at one level it learns the
one straight step to the teacher's latents at the next (progressive distillation, Salimans and Ho,
arXiv 2202.00512, along fixed levels). What comes out is an adapter file for `wan_tpu.fast`.

About half an hour on one core that others use, too. Apart from the order in which threads add
floats, the seed decides everything.
"""

import argparse
import dataclasses
import logging
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch import nn
from transformers import UMT5EncoderModel

from wan_tpu.adapters.form import Factors
from wan_tpu.adapters.write import AdapterMetadata, write_adapter
from wan_tpu.demo import WAN_TINY_PATH, data
from wan_tpu.demo.recipes import WAN_TINY
from wan_tpu.demo.train_denoiser import CompactAttention, compact_text, tokenize
from wan_tpu.fast import WAN_TINY_4
from wan_tpu.schedulers.unipc import UniPCSchedule

logger = logging.getLogger(__name__)

LATENTS = (16, 5, 8, 8)
"""Of one video of wan-tiny: channels, frames, rows, columns."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DistillRecipe:
    """What decides the adapter.

    Attributes:
        trajectories: of the teacher, each with a scene and noise of its own.
        shard: of them that are made at once.
        teacher_steps: a multiple of the student's.
        rank: of the factors.
        layers: of every block that have factors; the others stay.
        steps: of the optimiser. batch: trajectories of each.
        learning_rate: at its peak, after `warmup_steps`; then it falls as a cosine to a fiftieth.
        largest_gradient: what gradients are cut to, as a norm.
    """

    trajectories: int = 896
    shard: int = 64
    teacher_steps: int = 12
    rank: int = 8
    layers: tuple[str, ...] = ("attn1", "ffn", "attn2.to_q", "attn2.to_out")
    steps: int = 600
    batch: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 30
    largest_gradient: float = 0.1


class LowRank(nn.Module):
    """A linear layer that stays as it is, and a product of two small ones beside it."""

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down = nn.Parameter(torch.empty(rank, linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's result, and what the factors add."""
        return self.linear(x) + x @ self.down.T @ self.up.T


def load_models(folder: Path) -> tuple[Any, Any]:
    """Text encoder and transformer of a model's folder, float32, with the attention of training."""
    text_encoder: Any = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
    transformer: Any = WanTransformer3DModel.from_pretrained(folder / "transformer")
    transformer.set_attn_processor(CompactAttention())
    return text_encoder.float().eval(), transformer.float().eval().requires_grad_(False)


@torch.no_grad()
def encode_scenes(text_encoder: Any) -> torch.Tensor:
    """Embeddings of every scene's prompt, and of the empty one last."""
    prompts = [scene.prompt for scene in data.all_scenes()] + [""]
    return compact_text(text_encoder, *tokenize(prompts))


def teacher_levels(num_steps: int, shift: float) -> np.ndarray:
    """Shifted even levels from 1 to 0, `[steps + 1]`; the first has a signal-to-noise ratio."""
    even = np.linspace(1, 0, num_steps + 1)
    levels = shift * even / (1 + (shift - 1) * even)
    levels[0] -= 1e-6
    return levels


@torch.no_grad()
def run_teacher(
    transformer: Any, text: torch.Tensor, scenes: np.ndarray, noise: np.ndarray, num_steps: int
) -> np.ndarray:
    """The teacher's latents at the student's levels and at the end.

    Args:
        transformer: the teacher.
        text: from `encode_scenes`.
        scenes: `[batch]`, indexes into it.
        noise: `[batch, channels, frames, rows, columns]`.
        num_steps: of the teacher.

    Returns:
        `[batch, levels + 1, channels, frames, rows, columns]`, float16.
    """
    levels = teacher_levels(num_steps, WAN_TINY.flow_shift)
    timesteps = (1000 * levels[:-1]).astype(np.float32)
    schedule = UniPCSchedule(timesteps=timesteps, sigmas=levels)
    every = num_steps // len(WAN_TINY_4.sigmas)
    positive, negative = text[scenes], text[-1:].expand(len(scenes), -1, -1)
    sample, last, history = noise, np.zeros_like(noise), [np.zeros_like(noise)] * 2
    kept = []
    for step, timestep in enumerate(timesteps):
        told = torch.full((len(scenes),), float(timestep))
        latents = torch.from_numpy(sample)
        with_prompt = transformer(latents, told, positive, return_dict=False)[0]
        without = transformer(latents, told, negative, return_dict=False)[0]
        velocity = (without + WAN_TINY.guidance_scale * (with_prompt - without)).numpy()
        numbers = schedule.coefficients(step)
        clean = sample - numbers.sigma * velocity
        corrected = _weighted(numbers.corrector, (sample, last, clean, *history))
        if step % every == 0:
            kept.append(corrected.astype(np.float16))
        history = [clean, history[0]]
        sample, last = _weighted(numbers.predictor, (corrected, *history)), corrected
    return np.stack([*kept, sample.astype(np.float16)], axis=1)


def _weighted(weights: Any, arrays: Sequence[np.ndarray]) -> np.ndarray:
    total = sum(weight * array for weight, array in zip(weights, arrays, strict=True))
    return np.asarray(total, np.float32)


def make_trajectories(
    transformer: Any, text: torch.Tensor, recipe: DistillRecipe, seed: int, work: Path
) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's, a file for each shard; those that are there are not made again.

    Returns:
        Latents as of `run_teacher`, and the scene of each.
    """
    latents, scenes = [], []
    for shard in range(-(-recipe.trajectories // recipe.shard)):
        path = work / f"{shard:03d}.npz"
        if not path.exists():
            rng = np.random.default_rng((7 + seed, shard))
            chosen = rng.integers(len(text) - 1, size=recipe.shard)
            noise = rng.standard_normal((recipe.shard, *LATENTS), dtype=np.float32)
            made = run_teacher(transformer, text, chosen, noise, recipe.teacher_steps)
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, scenes=chosen, latents=made)
            partial.replace(path)  # never half a shard
            logger.info("trajectories: shard %d", shard)
        with np.load(path) as kept:
            latents.append(torch.from_numpy(kept["latents"]))
            scenes.append(torch.from_numpy(kept["scenes"]))
    return torch.cat(latents), torch.cat(scenes)


def add_factors(transformer: Any, recipe: DistillRecipe) -> dict[str, LowRank]:
    """Puts factors beside the transformer's layers; by diffusers' names of the weights."""
    found = {}
    for number, block in enumerate(transformer.blocks):
        linears = [(n, m) for n, m in block.named_modules() if isinstance(m, nn.Linear)]
        for name, linear in linears:
            if not name.startswith(recipe.layers):
                continue
            parent, _, last = name.rpartition(".")
            layer = found[f"blocks.{number}.{name}.weight"] = LowRank(linear, recipe.rank)
            setattr(block.get_submodule(parent), last, layer)
    return found


def train_student(
    transformer: Any,
    text: torch.Tensor,
    trajectories: tuple[torch.Tensor, torch.Tensor],
    recipe: DistillRecipe,
    seed: int,
) -> dict[str, LowRank]:
    """The factors with which one step leads from each level to the teacher's next latents."""
    torch.manual_seed(seed)
    layers = add_factors(transformer, recipe)
    factors = [part for layer in layers.values() for part in (layer.down, layer.up)]
    optimizer = torch.optim.AdamW(
        factors, lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
    )
    levels = torch.tensor([*WAN_TINY_4.sigmas, 0.0], dtype=torch.float32)
    rng, started = np.random.default_rng((1, seed)), time.monotonic()
    smooth = None
    for step in range(recipe.steps):
        warmup = min(1.0, (step + 1) / recipe.warmup_steps)
        factor = warmup * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps)))
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * factor
        loss = _step_loss(transformer, text, trajectories, levels, recipe.batch, rng)
        loss.backward()
        nn.utils.clip_grad_norm_(factors, recipe.largest_gradient)
        optimizer.step()
        optimizer.zero_grad()
        value = float(loss.detach())
        smooth = value if smooth is None else 0.97 * smooth + 0.03 * value
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - started
            logger.info("step %d of %d, loss %.6f, %.0f s", step + 1, recipe.steps, smooth, seconds)
    return layers


def _step_loss(
    transformer: Any,
    text: torch.Tensor,
    trajectories: tuple[torch.Tensor, torch.Tensor],
    levels: torch.Tensor,
    batch: int,
    rng: np.random.Generator,
) -> torch.Tensor:
    """Mean square of what a student's step misses of the teacher's next latents.

    As many of a batch from each level.
    """
    latents, scenes = trajectories
    chosen = torch.from_numpy(rng.integers(len(latents), size=batch))
    level = torch.from_numpy(rng.permutation(batch) % (len(levels) - 1))
    here, there = latents[chosen, level].float(), latents[chosen, level + 1].float()
    told = 1000 * levels[level]
    velocity = transformer(here, told, text[scenes[chosen]], return_dict=False)[0]
    length = (levels[level + 1] - levels[level])[:, None, None, None, None]
    return (here + length * velocity - there).square().mean()


def write_student(path: Path, layers: dict[str, LowRank], recipe: DistillRecipe) -> None:
    """The adapter's file, bfloat16, with where it is from in its header."""
    factors = {
        name: Factors(down=layer.down.detach().numpy(), up=layer.up.detach().numpy())
        for name, layer in layers.items()
    }
    metadata = AdapterMetadata(
        base_model=WAN_TINY_PATH.name, title=WAN_TINY_4.label, steps=recipe.steps
    )
    write_adapter(path, factors, metadata=metadata)


def distil(recipe: DistillRecipe, *, work: Path, out: Path, seed: int = 0) -> None:
    """Runs the whole recipe and writes the adapter.

    Args:
        recipe: what decides it.
        work: a folder for the teacher's trajectories.
        out: the adapter's file.
        seed: of everything that is drawn.
    """
    work.mkdir(parents=True, exist_ok=True)
    text_encoder, transformer = load_models(WAN_TINY_PATH)
    text = encode_scenes(text_encoder)
    trajectories = make_trajectories(transformer, text, recipe, seed, work)
    write_student(out, train_student(transformer, text, trajectories, recipe, seed), recipe)


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m wan_tpu.demo.distill", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder of the trajectories")
    parser.add_argument("--out", type=Path, default=Path(WAN_TINY_4.adapters[0]))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    distil(DistillRecipe(), work=options.work, out=options.out, seed=options.seed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
