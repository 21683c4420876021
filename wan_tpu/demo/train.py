"""Makes an embedded model from nothing: `python -m wan_tpu.demo.train --model wan-tiny`.

Autoencoder on single frames, then on clips; the data set's latents; transformer and text encoder
together. Each phase leaves checkpoints in `--work`, and a run that was stopped goes on from there.
The result is a folder in diffusers' format. Apart from the order in which threads add floats, a
seed and the kind of device decide everything.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline

from wan_tpu.demo import data
from wan_tpu.demo.phases import Run
from wan_tpu.demo.recipes import RECIPES, Recipe
from wan_tpu.demo.tokenizer import make_tokenizer
from wan_tpu.demo.train_denoiser import train_denoiser
from wan_tpu.demo.train_vae import (
    encode_clips,
    make_vae,
    normalise,
    psnr_by_pair,
    round_to_bfloat16,
    train_vae,
)

logger = logging.getLogger(__name__)

PORTABLE_TOKENIZER = "PreTrainedTokenizerFast"


def train_model(recipe: Recipe, run: Run, out: Path) -> None:
    """Runs the whole recipe and writes the model folder."""
    vae = cast(Any, make_vae(recipe.vae.config, run.seed)).to(run.device)
    train_vae(vae, recipe.vae, run)
    vae.eval()
    round_to_bfloat16(vae)
    if recipe.psnr_clips:
        pairs = psnr_by_pair(vae, recipe.world, run, recipe.psnr_clips)
        for (color, background), (clips, first) in pairs.items():
            logger.info(
                "autoencoder: %s on %s: %.1f dB, the worst first frame %.1f dB",
                color, background, clips, first,
            )  # fmt: skip
    latents = normalise(vae, _latents(vae, recipe, run))
    scene_of_clip = np.arange(len(latents)) % len(data.all_scenes())
    text_encoder, transformer = train_denoiser(latents, scene_of_clip, recipe.denoiser, run)
    save_model(out, recipe, vae=vae, text_encoder=text_encoder, transformer=transformer)


def _latents(vae: AutoencoderKLWan, recipe: Recipe, run: Run) -> torch.Tensor:
    """The data set's latents, from the run's folder if they are there."""
    path = run.work / "latents.pt"
    if not path.exists():
        torch.save(encode_clips(vae, recipe.denoiser.num_clips, recipe.world, run), path)
    return torch.load(path, weights_only=True, map_location=run.device)


def save_model(out: Path, recipe: Recipe, *, vae, text_encoder, transformer) -> None:
    """Writes the diffusers folder in bfloat16, with generation_defaults.json."""
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=recipe.flow_shift,
        solver_order=2,
        solver_type="bh2",
    )
    pipeline = WanPipeline(
        tokenizer=cast(Any, make_tokenizer()),
        text_encoder=text_encoder.bfloat16(),
        transformer=transformer.bfloat16(),
        vae=vae.bfloat16(),
        scheduler=cast(Any, scheduler),
        expand_timesteps=recipe.takes_pictures,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    _write_json(out / "generation_defaults.json", recipe.generation_defaults())
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
    parser.add_argument("--model", choices=RECIPES, default="wan-tiny")
    parser.add_argument(
        "--out", type=Path, help="the model folder to write; default: the package's"
    )
    parser.add_argument("--work", type=Path, help="checkpoints; a second run resumes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
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
    if options.device != "cpu":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    recipe = RECIPES[options.model]
    run = Run(
        work=options.work or Path(f"{options.model}-work"),
        seed=options.seed,
        device=options.device,
        compile=not options.no_compile,
    )
    train_model(recipe, run, options.out or recipe.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
