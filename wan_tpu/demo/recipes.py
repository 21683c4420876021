"""What decides the weights of the embedded models, besides the seed: one value per model."""

import dataclasses
from pathlib import Path
from typing import Any

from wan_tpu.demo import WAN_TINY_PATH, WAN_TINY_TI2V_PATH, data
from wan_tpu.demo.phases import Phase
from wan_tpu.demo.train_denoiser import DenoiserRecipe
from wan_tpu.demo.train_vae import VaeRecipe


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A model: what it knows, how it is trained, and what its requests leave open.

    Attributes:
        path: the model folder in the package.
        world: what its videos show.
        vae: the autoencoder.
        denoiser: transformer and text encoder.
        takes_pictures: whether the first frame may be given, which diffusers calls
            `expand_timesteps`.
        num_inference_steps: a request's, where it names none; so the two that follow.
        guidance_scale: likewise.
        flow_shift: likewise.
        psnr_clips: how many clips of each pair of colours the log measures: decides nothing.
    """

    path: Path
    world: data.World
    vae: VaeRecipe
    denoiser: DenoiserRecipe
    takes_pictures: bool = False
    num_inference_steps: int = 12
    guidance_scale: float = 1.5
    flow_shift: float = 5.0
    psnr_clips: int = 4

    def generation_defaults(self) -> dict[str, Any]:
        """What a request leaves open, as generation_defaults.json says it."""
        return {
            "width": self.world.side,
            "height": self.world.side,
            "num_frames": self.world.num_frames,
            "fps": self.world.fps,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "flow_shift": self.flow_shift,
            "negative_prompt": "",
        }


# About an hour on two cores.
WAN_TINY = Recipe(
    path=WAN_TINY_PATH,
    world=data.SIDES_WORLD,
    vae=VaeRecipe(
        # 2.05 M parameters, 4.1 MB in bfloat16: half of the 8 MB that the model folder may take.
        config={"base_dim": 16, "z_dim": 16, "dim_mult": [1, 2, 2, 4], "num_res_blocks": 1},
        world=data.SIDES_WORLD,
        frames=Phase(name="vae-frames", steps=3000, batch=32, learning_rate=2e-3),
        # 1e-3 diverges here (lab).
        clips=Phase(name="vae-clips", steps=500, batch=4, learning_rate=3e-4),
    ),
    denoiser=DenoiserRecipe(
        phase=Phase(
            name="denoiser", steps=4500, batch=32, learning_rate=2e-3, warmup_steps=200, hold=0.4
        ),
        num_clips=5400,  # 25 of each scene
    ),
)

# Seven minutes on an H200; on CPUs about a day (benchmarks/results/2026-11-26-wan-tiny-ti2v.md).
WAN_TINY_TI2V = Recipe(
    path=WAN_TINY_TI2V_PATH,
    world=data.MIDDLE_WORLD,
    vae=VaeRecipe(
        # Wan 2.2's residual autoencoder, 1.65 M parameters. A patch of 2 makes its inner pictures
        # 64 x 64: the work of wan-tiny's.
        config={
            "base_dim": 16,
            "decoder_base_dim": 24,
            "z_dim": 48,
            "dim_mult": [1, 2, 2, 2],
            "num_res_blocks": 1,
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
        },
        # Wider than what the videos show: pictures from elsewhere have shapes of other sizes in
        # other places.
        world=dataclasses.replace(
            data.MIDDLE_WORLD,
            half_size=(12.0, 26.0),
            travel=(20.0, 60.0),
            across=44.0,
            along=44.0,
        ),
        frames=Phase(name="vae-frames", steps=1600, batch=64, learning_rate=2e-3),
        clips=Phase(name="vae-clips", steps=2300, batch=16, learning_rate=7e-4),
    ),
    denoiser=DenoiserRecipe(
        phase=Phase(
            name="denoiser", steps=10200, batch=256, learning_rate=2e-3, warmup_steps=200, hold=0.4
        ),
        num_clips=21600,  # 100 of each scene
        given_share=0.5,
    ),
    takes_pictures=True,
)

RECIPES = {recipe.path.name: recipe for recipe in (WAN_TINY, WAN_TINY_TI2V)}
