"""seconds of a wan-tiny training step, ours beside PyTorch's

Of a LoRA beside PyTorch eager with diffusers and peft: the same batch, rank, linears and optimiser.
With --against recipe, of all weights beside the step that made wan-tiny from nothing
(`wan_tpu.demo.train_denoiser`): the same batch, and the recipe trains the text encoder, too.

Both on the same cores, by turns in one process, so that what else the machine does falls on both.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from wan_tpu.demo import WAN_TINY_PATH
from wan_tpu.training.config import ALL_LINEARS, TrainingConfig
from wan_tpu.training.config_file import read_config

PRESET = "lora-wan-tiny"
SIDE, FRAMES = 64, 17
LATENTS = (16, 5, 8, 8)  # channels, frames, height, width
TEXT = (512, 64)
WORDS = 10  # of a caption, its end included; zero past them
FULL = ("train.trains=full", "train.batch=32")  # the recipe's batch
Steps = Callable[[int], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How often it is measured, and beside what."""
    parser.add_argument(
        "--against", choices=("peft", "recipe"), default="peft", help="default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: 5)")
    parser.add_argument("--steps", type=int, default=10, help="steps of a turn (default: 10)")


def run(parsed: argparse.Namespace) -> int:
    """Measures and prints both, and one over the other."""
    is_lora = parsed.against == "peft"
    settings = [] if is_lora else [*FULL]
    config = read_config(None, preset=PRESET, settings=settings, needs_data=False)
    numbers = np.random.default_rng(0)
    latents = numbers.standard_normal((config.train.batch, *LATENTS), dtype=np.float32)
    text = np.zeros((config.train.batch, *TEXT), np.float32)
    text[:, :WORDS] = numbers.standard_normal((len(text), WORDS, TEXT[1]), dtype=np.float32)
    theirs = torch_step(config, latents, text) if is_lora else recipe_step(latents)
    steps = {"ours": our_step(config, latents, text), "torch": theirs}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step(2)
    for _ in range(parsed.rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step(parsed.steps)
            seconds[name].append((time.perf_counter() - started) / parsed.steps)
    for name, found in seconds.items():
        sys.stdout.write(
            f"{name:<6}{statistics.median(found):>8.3f} s a step, {min(found):.3f} to "
            f"{max(found):.3f}\n"
        )
    ratios = [ours / other for ours, other in zip(seconds["ours"], seconds["torch"], strict=True)]
    sys.stdout.write(f"ours / torch {statistics.median(ratios):.2f}\n")
    return 0


def our_step(config: TrainingConfig, latents: np.ndarray, text: np.ndarray) -> Steps:
    """So many steps of the trainer, the data being there."""
    import jax

    from wan_tpu import runtime
    from wan_tpu.checkpoints.models import open_model
    from wan_tpu.dataset.sample import Batch
    from wan_tpu.geometry import Geometry
    from wan_tpu.pipeline.check import compression_of
    from wan_tpu.pipeline.load import place_model
    from wan_tpu.sharding.layout import Layout
    from wan_tpu.training.trainer import Trainer

    runtime.start(cache_folder=None)
    description = open_model(config.model.name)
    trainer = Trainer(config, place_model(description, layout=Layout(), devices=jax.devices()[:1]))
    states = trainer.load()
    compression = compression_of(description)
    batch = Batch(
        geometry=Geometry(width=SIDE, height=SIDE, num_frames=FRAMES, compression=compression),
        names=tuple(map(str, range(len(latents)))),
        captions=("",) * len(latents),
        latents=np.moveaxis(latents, 1, -1),
        text=text,
    )
    done = 0

    def steps(count: int) -> None:
        nonlocal states, done
        metrics = None
        for _ in range(count):
            states, metrics = trainer.run(states, batch, done, np.zeros(TEXT, np.float32))
            done += 1
        jax.block_until_ready((states, metrics))

    return steps


def torch_step(config: TrainingConfig, latents: np.ndarray, text: np.ndarray) -> Steps:
    """The same with the libraries that others train with."""
    import torch
    from diffusers import WanTransformer3DModel
    from peft import LoraConfig

    torch.manual_seed(0)
    model: Any = WanTransformer3DModel.from_pretrained(
        str(WAN_TINY_PATH), subfolder="transformer", torch_dtype=torch.float32
    )
    model.requires_grad_(requires_grad=False)
    rank = config.lora.rank
    targets = list(config.lora.targets or ALL_LINEARS)
    model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=config.optimiser.learning_rate)
    clean, context, shift = torch.from_numpy(latents), torch.from_numpy(text), config.flow.shift

    def steps(count: int) -> None:
        for _ in range(count):
            u = torch.rand(len(clean))
            sigma = shift * u / (1 + (shift - 1) * u)
            level, noise = sigma[:, None, None, None, None], torch.randn_like(clean)
            noised = (1 - level) * clean + level * noise
            velocity = model(noised, sigma * 1000, context, return_dict=False)[0]
            (velocity - (noise - clean)).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(trained, config.optimiser.clip_norm)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    return steps


def recipe_step(latents: np.ndarray) -> Steps:
    """The step by which the embedded model was made: in bfloat16, 11 text positions, Muon.

    Eager, though the recipe compiles it: Inductor does not start in a process with torchax.
    """
    import torch

    from wan_tpu.demo import data
    from wan_tpu.demo.recipes import WAN_TINY
    from wan_tpu.demo.train_denoiser import (
        CompactAttention,
        compact_text,
        flow_loss,
        make_models,
        make_optimizers,
        tokenize,
    )

    clean, recipe = torch.from_numpy(latents), WAN_TINY.denoiser
    text_encoder, transformer = make_models(0, latents.shape[1])
    transformer.set_attn_processor(CompactAttention())  # pyright: ignore[reportArgumentType]
    optimizers = make_optimizers([text_encoder, transformer], recipe.phase.learning_rate)
    parameters = [*text_encoder.parameters(), *transformer.parameters()]
    ids, mask = tokenize([scene.prompt for scene in data.all_scenes()[: len(clean)]])

    def steps(count: int) -> None:
        for _ in range(count):
            u = torch.rand(len(clean))
            sigma = recipe.shift * u / (1 + (recipe.shift - 1) * u)
            with torch.autocast("cpu", torch.bfloat16):
                text = compact_text(text_encoder, ids, mask)
                loss = flow_loss(transformer, text, clean, torch.randn_like(clean), sigma)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    return steps
