"""Videos of the embedded models by diffusers itself, for the judge."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from PIL import Image

from wan_tpu.demo.judge import Trial


def load_pipelines(path: Path, device: str = "cpu") -> tuple[Any, Any]:
    """The model in WanPipeline, and the same parts in WanImageToVideoPipeline."""
    text: Any = WanPipeline.from_pretrained(path).to(device)
    image: Any = WanImageToVideoPipeline(
        **{name: part for name, part in text.components.items() if name != "transformer_2"},
        expand_timesteps=text.config.expand_timesteps,
    )
    for pipeline in (text, image):
        pipeline.set_progress_bar_config(disable=True)
    return text, image


def call_arguments(path: Path) -> dict[str, Any]:
    """What generation_defaults.json says, as a pipeline's arguments."""
    defaults = json.loads((path / "generation_defaults.json").read_text(encoding="utf-8"))
    names = ("height", "width", "num_frames", "num_inference_steps", "guidance_scale")
    return {name: defaults[name] for name in names} | {"output_type": "np"}


def make_videos(
    pipelines: tuple[Any, Any], trials: Sequence[Trial], arguments: dict[str, Any]
) -> list[np.ndarray]:
    """One video per trial, [frames, height, width, 3], uint8."""
    text, image = pipelines
    videos = []
    for trial in trials:
        given = {} if trial.picture is None else {"image": Image.fromarray(trial.picture)}
        pipeline = image if given else text
        video = pipeline(
            prompt=trial.scene.prompt,
            negative_prompt="",
            generator=torch.Generator().manual_seed(trial.seed),
            **given,
            **arguments,
        ).frames[0]
        videos.append(np.round(video * 255).astype(np.uint8))
    return videos
