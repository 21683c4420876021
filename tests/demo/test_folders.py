"""Both models in the package: small, complete, and what they say of themselves."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler

from wan_tpu.demo import data, train_vae
from wan_tpu.demo.recipes import RECIPES
from wan_tpu.fast import PRESETS, WAN_TINY_4

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=list(RECIPES))
def recipe(request):
    return RECIPES[request.param]


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_folder_is_at_most_eight_megabytes_of_safetensors_and_json(recipe):
    files = files_of(recipe.path)
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    assert {path.suffix for path in files} == {".json", ".safetensors"}


def test_the_wheel_holds_every_file(recipe):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    demo = recipe.path.parent
    packed = {
        path
        for pattern in project["tool"]["setuptools"]["package-data"]["wan_tpu.demo"]
        for path in demo.glob(pattern)
    }
    assert packed.issuperset(files_of(recipe.path))


def test_the_wheel_holds_the_adapters_of_presets():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["wan_tpu.demo"]
    packed = {path for pattern in patterns for path in (ROOT / "wan_tpu" / "demo").glob(pattern)}
    embedded = {
        ROOT / "wan_tpu" / each.embedded
        for each in (WAN_TINY_4, *PRESETS)
        if each.embedded is not None
    }
    assert embedded
    assert packed >= embedded


def test_the_defaults_are_the_recipes(recipe):
    defaults = json.loads((recipe.path / "generation_defaults.json").read_text(encoding="utf-8"))
    assert defaults == recipe.generation_defaults()
    scheduler: Any = UniPCMultistepScheduler.from_pretrained(recipe.path / "scheduler")
    assert defaults["flow_shift"] == scheduler.config.flow_shift


def test_latents_have_unit_variance_per_channel(recipe):
    vae: Any = AutoencoderKLWan.from_pretrained(recipe.path / "vae")
    rng = np.random.default_rng(0)
    scenes = [data.all_scenes()[i] for i in rng.permutation(216)[:16]]
    poses = [data.random_pose(rng, recipe.world) for _ in scenes]
    times = np.tile(data.clip_times(recipe.world), (len(scenes), 1))
    with torch.no_grad(), train_vae.whole_clips():
        video = train_vae.draw(scenes, poses, recipe.world, times, "cpu")
        latents = train_vae.encode_mean(vae, video)
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape)
    latents = (latents - mean) / torch.tensor(vae.config.latents_std).view(shape)
    # Sixteen clips of thousands: the channels' figures scatter by about a tenth.
    assert latents.mean((0, 2, 3, 4)).abs().max() < 0.35
    assert (latents.std((0, 2, 3, 4)) - 1).abs().max() < 0.35
