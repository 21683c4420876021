"""Makes wan-tiny from nothing: `python -m wan_tpu.demo.train`, about an hour on two cores.

Autoencoder on single frames, then on clips; the data set's latents; transformer and text encoder
together. Each phase leaves checkpoints in `--work`, and a run that was stopped goes on from there.
The result is a folder in diffusers' format. Apart from the order in which threads add floats, a
seed decides everything.
"""

import argparse
import dataclasses
import json
import logging
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

from wan_tpu.demo import WAN_TINY_PATH, data
from wan_tpu.demo.phases import Run
from wan_tpu.demo.tokenizer import make_tokenizer
from wan_tpu.demo.train_denoiser import DenoiserRecipe, train_denoiser
from wan_tpu.demo.train_vae import (
    VaeRecipe,
    encode_clips,
    make_vae,
    normalise,
    psnr_by_pair,
    round_to_bfloat16,
    train_vae,
)

logger = logging.getLogger(__name__)

# What a request leaves open; the library reads generation_defaults.json in the model's folder.
GENERATION_DEFAULTS = {
    "width": data.CLIP_SIZE,
    "height": data.CLIP_SIZE,
    "num_frames": data.CLIP_FRAMES,
    "fps": data.CLIP_FPS,
    "num_inference_steps": 12,
    "guidance_scale": 1.5,
    "flow_shift": 5.0,
    "negative_prompt": "",
}

PORTABLE_TOKENIZER = "PreTrainedTokenizerFast"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides the weights, besides the seed."""

    vae: VaeRecipe = dataclasses.field(default_factory=VaeRecipe)
    denoiser: DenoiserRecipe = dataclasses.field(default_factory=DenoiserRecipe)
    psnr_clips: int = 4  # for the log: decides nothing


def train_wan_tiny(recipe: Recipe, run: Run, out: Path) -> None:
    """Runs the whole recipe and writes the model folder."""
    vae = make_vae(run.seed)
    train_vae(vae, recipe.vae, run)
    vae.eval()
    round_to_bfloat16(vae)
    quality = psnr_by_pair(vae, run.seed, recipe.psnr_clips) if recipe.psnr_clips else {}
    for (color, background), decibels in quality.items():
        logger.info("autoencoder: %s on %s: %.1f dB", color, background, decibels)
    latents = normalise(vae, _latents(vae, recipe.denoiser.num_clips, run))
    scene_of_clip = np.arange(len(latents)) % len(data.all_scenes())
    text_encoder, transformer = train_denoiser(latents, scene_of_clip, recipe.denoiser, run)
    save_model(out, vae=vae, text_encoder=text_encoder, transformer=transformer)


def _latents(vae: AutoencoderKLWan, num_clips: int, run: Run) -> torch.Tensor:
    """The data set's latents, from the run's folder if they are there."""
    path = run.work / "latents.pt"
    if not path.exists():
        torch.save(encode_clips(vae, num_clips, run), path)
    return torch.load(path, weights_only=True)


def save_model(out: Path, *, vae, text_encoder, transformer) -> None:
    """Writes the diffusers folder in bfloat16, with generation_defaults.json."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=GENERATION_DEFAULTS["flow_shift"],
        solver_order=2,
        solver_type="bh2",
    )
    pipeline = WanPipeline(
        tokenizer=cast(Any, make_tokenizer()),
        text_encoder=text_encoder.bfloat16(),
        transformer=transformer.bfloat16(),
        vae=vae.bfloat16(),
        scheduler=cast(Any, scheduler),
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    _write_json(out / "generation_defaults.json", GENERATION_DEFAULTS)
    # transformers 5 calls the class TokenizersBackend; by the older name 4 and 5 both load it.
    for path in (out / "model_index.json", out / "tokenizer" / "tokenizer_config.json"):
        text = path.read_text(encoding="utf-8").replace("TokenizersBackend", PORTABLE_TOKENIZER)
        _write_json(path, json.loads(text))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    logger.info("wrote %s, %.2f MB", out, size / 1e6)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m wan_tpu.demo.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=WAN_TINY_PATH, help="the model folder to write")
    parser.add_argument(
        "--work", type=Path, default=Path("wan-tiny-work"), help="checkpoints; a second run resumes"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads",
        type=int,
        default=2,
        help="1 where other work runs: beside it two threads took 3.7 s a step, not 0.2",
    )
    parser.add_argument(
        "--no-compile",
        action="store_true",
        help="without torch.compile (no C++ compiler): twice as long",
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    run = Run(work=options.work, seed=options.seed, compile=not options.no_compile)
    train_wan_tiny(Recipe(), run, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
