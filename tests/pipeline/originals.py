"""diffusers' own pipelines on a small model: what they make of a request and its pictures."""

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline, WanVideoToVideoPipeline
from PIL import Image

from wan_tpu.request import VideoRequest


class Original(NamedTuple):
    """What diffusers made.

    Attributes:
        latents: as the decoder took them, `[1, frames, height, width, channels]`, float32.
        frames: `[frames, height, width, 3]`, uint8.
    """

    latents: np.ndarray
    frames: np.ndarray


@functools.cache
def load_original(folder: str, pipeline_class: Any) -> Any:
    """A pipeline of diffusers in float32 on the CPU."""
    pipeline = pipeline_class.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_original(folder: str, request: VideoRequest, pictures: dict[str, np.ndarray]) -> Original:
    """What the pipeline for these inputs makes.

    Args:
        folder: of the model.
        request: complete.
        pictures: by role, in the size of the video: `[height, width, 3]`, or a clip's frames.
    """
    images = {
        role: [Image.fromarray(frame) for frame in picture]
        if picture.ndim == 4
        else Image.fromarray(picture)
        for role, picture in pictures.items()
    }
    wanted: dict[str, Any] = {"num_frames": request.num_frames}
    if "video" in images:
        pipeline_class: Any = WanVideoToVideoPipeline
        wanted = {"strength": request.strength}
    else:
        pipeline_class = WanImageToVideoPipeline if images else WanPipeline
        wanted |= {"guidance_scale_2": request.guidance_scale_2}
    pipeline = load_original(folder, pipeline_class)
    pipeline.scheduler.register_to_config(flow_shift=request.flow_shift)

    decoded = []
    decode = pipeline.vae.decode

    def watched(latents: torch.Tensor, **kwargs: Any) -> Any:
        decoded.append(latents)
        return decode(latents, **kwargs)

    pipeline.vae.decode = watched
    try:
        video = pipeline(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            width=request.width,
            height=request.height,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_type="np",
            **wanted,
            **images,
        ).frames[0]
    finally:
        pipeline.vae.decode = decode
    return Original(
        latents=decoded[0].numpy().transpose(0, 2, 3, 4, 1),
        frames=(np.asarray(video) * 255).round().astype(np.uint8),
    )
