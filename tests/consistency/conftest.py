"""The models that are compared, and what one device makes of them."""

import dataclasses
import functools
import pathlib
import shutil

import jax
import pytest
import torch
from diffusers import AutoencoderKLWan

from tests.checkpoint_factory import PROMPT, VAE, make_random_checkpoint
from tests.consistency.cases import Case
from wan_tpu.checkpoints.models import open_model
from wan_tpu.pipeline.consistency import Run, run_layout
from wan_tpu.pipeline.options import LoadOptions
from wan_tpu.request import VideoRequest
from wan_tpu.sharding.layout import Layout

SMALL_VAE = {"dim_mult": [1, 1], "temperal_downsample": [True]}
"""Two levels, each halves sizes: compiling wan-tiny's four is most of what a comparison takes."""

TRANSFORMERS = {
    "12 heads": {"num_attention_heads": 12, "attention_head_dim": 12, "num_layers": 2},
    "5 heads": {"num_attention_heads": 5, "attention_head_dim": 24, "num_layers": 2},
}

GRID = (5, 7)
"""Rows and columns of tokens: 35 for one latent frame, 175 for five. No split divides either; over
eight shards one of 35 holds padding only; 175 are more than one tile of splash."""

NUM_FRAMES = {"one frame": 1, "many frames": 9}
"""One and five latent frames."""


def make_wan_tiny_with_small_vae(folder: pathlib.Path) -> pathlib.Path:
    """wan-tiny's text encoder and trained transformer; its VAE is split in the command's tests."""
    original = open_model("wan-tiny").folder
    assert original is not None
    shutil.copytree(original, folder, ignore=shutil.ignore_patterns("vae"), dirs_exist_ok=True)
    torch.manual_seed(0)
    channels = {"z_dim": 16, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
    AutoencoderKLWan(**{**VAE, **SMALL_VAE, **channels}).save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="session")
def compared_runs(tmp_path_factory, devices):
    """Runs a case's request on its layout and on one device, whose run is kept."""
    folders = {
        name: make_random_checkpoint(tmp_path_factory.mktemp("model"), sizes, SMALL_VAE)
        for name, sizes in TRANSFORMERS.items()
    }
    folders["8 heads"] = make_wan_tiny_with_small_vae(tmp_path_factory.mktemp("model"))

    def run(case: Case) -> Run:
        request = VideoRequest(
            prompt=PROMPT,
            negative_prompt="",
            height=GRID[0] * 4,
            width=GRID[1] * 4,
            num_frames=NUM_FRAMES[case.frames],
            num_inference_steps=3,
            guidance_scale=3.0 if case.guidance == "guided" else 1.0,
            seed=1,
        )
        options = LoadOptions(
            model=str(folders[case.model]),
            layout=case.layout,
            dtype="float32",
            attention=case.attention,
        )
        return run_layout(options.open_model(), options, request)

    @functools.cache
    def run_once(case: Case) -> Run:
        return run(case)

    def both(case: Case) -> tuple[Run, Run]:
        """What the case's layout makes, and one device with the reference attention."""
        alone = dataclasses.replace(case, layout=Layout(), attention="reference")
        return run(case), run_once(alone)

    return both


@pytest.fixture(autouse=True)
def compiled_quickly():
    """Compiling is nearly all of the time; LLVM's late passes change no layout."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
