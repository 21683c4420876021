"""A model as `GET /v1/models` shows it."""

import dataclasses

from server.http.bodies import MOST_VARIATIONS
from server.http.schemas import Adapter, Model, ModelDefaults, ModelLimits, Preset, StepCache
from server.http.served_model import ServedModel
from server.jobs.video_object import format_seconds
from wan_tpu import step_cache
from wan_tpu.checkpoints.known import EMBEDDED
from wan_tpu.media import ROLES
from wan_tpu.pipeline.fast import embedded_adapters, own_presets, presets_of
from wan_tpu.request import ALL_SCHEDULERS

OWNER = "wan-tpu"
MAX_STEPS = 1000
CACHES = {step_cache.MAGCACHE: "MagCache", step_cache.EASYCACHE: "EasyCache"}

TINY_PROMPTS = (
    "a red circle moving right on a black background",
    "a yellow square moving down on a navy background",
    "a green triangle moving left on a gray background",
    "a white circle moving up on a navy background",
)
WAN_PROMPTS = (
    "a fox runs through snow at dusk, cinematic",
    "waves break on a rocky shore, seen from above",
)


def model_object(model: ServedModel, created: int) -> Model:
    """The model, its defaults and limits, and what it takes; reads the folder of adapters.

    Args:
        model: that is served.
        created: unix seconds.
    """
    defaults, kind = model.description.defaults, model.description.kind
    compression = model.compression
    return Model(
        id=model.id,
        object="model",
        created=created,
        owned_by=OWNER,
        defaults=ModelDefaults(
            size=f"{defaults.width}x{defaults.height}",
            seconds=format_seconds(defaults.num_frames, defaults.fps),
            num_frames=defaults.num_frames,
            fps=defaults.fps,
            num_inference_steps=defaults.num_inference_steps,
            guidance_scale=defaults.guidance_scale,
            flow_shift=defaults.flow_shift(defaults.width, defaults.height),
            negative_prompt=defaults.negative_prompt,
            scheduler=defaults.scheduler,
            guidance_scale_2=defaults.guidance_scale_2 if len(kind.experts) > 1 else None,
            strength=defaults.strength if "video" in kind.takes else None,
        ),
        limits=ModelLimits(
            size_multiple=[compression.width_multiple, compression.height_multiple],
            frame_multiple=compression.temporal,
            max_prompt_characters=model.max_prompt_characters,
            max_num_inference_steps=MAX_STEPS,
            max_work=model.max_work,
            max_upload_bytes=model.max_upload_bytes,
            max_n=MOST_VARIATIONS,
        ),
        inputs=[[role for role in ROLES if role in roles] for roles in kind.inputs],  # pyright: ignore[reportArgumentType] - the model checks it
        sizes=list(model.warm_sizes),
        schedulers=list(ALL_SCHEDULERS),
        experts=len(kind.experts),
        adapters=[Adapter(**dataclasses.asdict(each)) for each in model.adapters.look()],
        presets=_presets(model),
        step_caches=[StepCache(name=str(c), label=_label(c)) for c in model.step_caches],
        example_prompts=list(TINY_PROMPTS if model.description.name in EMBEDDED else WAN_PROMPTS),
    )


def _presets(model: ServedModel) -> list[Preset]:
    own = own_presets(model.description)
    return [
        Preset(
            **preset.to_json(),
            own=preset in own,
            needs_lora=bool(preset.adapters) and not embedded_adapters(preset),
        )
        for preset in presets_of(model.description)
    ]


def _label(cache: step_cache.StepCache) -> str:
    return f"{CACHES[cache.name]}, threshold {cache.threshold:g}"
