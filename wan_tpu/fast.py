"""Presets of few steps: models and adapters that were distilled, and what each was distilled to.

A distilled model makes a video in three to eight steps without guidance, and only at the noise
levels of its distillation, by its own update. One entry of `PRESETS` says those, for which kinds of
model they are, and where they are from; a checkpoint that says its own levels has a preset that no
table needs (`wan_tpu.checkpoints.distilled`). No JAX: a server asks, too.
"""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from wan_tpu import family
from wan_tpu.errors import InputError
from wan_tpu.family import ModelKind
from wan_tpu.request import SIGMA_SCHEDULERS, VideoRequest

EULER, RENOISE = SIGMA_SCHEDULERS
"""How the latents get from one level to the next."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FastPreset:
    """What a distilled model, or a model with a distilled adapter, is run with.

    Attributes:
        name: of the preset, as `--fast-preset` takes it.
        label: what people are shown.
        sigmas: the noise level of each step; the model is told 1000 times that.
        scheduler: one of `wan_tpu.request.SIGMA_SCHEDULERS`: `euler`, a straight step to the next
            level; `renoise`, to the video and back under fresh noise.
        kinds: of the models that it is for; none where only the checkpoint itself says so.
        num_heads: of their transformers; 0 for any.
        called: a pattern of names; a model so called is distilled itself, and takes the preset.
        adapters: what is added to the model, as its files are called, one for all transformers or
            one for each, high noise first; none for a model that is distilled itself.
        embedded: of `adapters`, the path in this package, below `wan_tpu/`; None for a user's.
        hub: where `adapters` are on the hub, as `owner/name/FILE`, for each of some `kinds`.
        source: who says so.
    """

    name: str
    label: str
    sigmas: tuple[float, ...]
    scheduler: str
    source: str
    kinds: tuple[ModelKind, ...] = ()
    num_heads: int = 0
    called: str | None = None
    adapters: tuple[str, ...] = ()
    embedded: str | None = None
    hub: tuple[tuple[ModelKind, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        assert self.scheduler in SIGMA_SCHEDULERS, self.scheduler

    def fits(self, kind: ModelKind, num_heads: int) -> bool:
        """Whether it is for models of this kind and size."""
        return self.num_heads in (0, num_heads) and any(map(kind.is_like, self.kinds))

    def hub_adapters(self, kind: ModelKind) -> tuple[str, ...]:
        """Its adapters for a kind of model as `--lora` takes them; none for a user's own."""
        return next((names for each, names in self.hub if kind.is_like(each)), ())

    def is_called_so(self, called: str) -> bool:
        """Whether a model with these names is one of those that were distilled to it."""
        return self.called is not None and re.search(self.called, called, re.I) is not None

    def decides(self, kind: ModelKind) -> Mapping[str, Any]:
        """The fields of a request that it decides, and their values for a kind of model."""
        return {
            "sigmas": self.sigmas,
            "num_inference_steps": len(self.sigmas),
            "scheduler": self.scheduler,
            "flow_shift": None,
            "guidance_scale": 1.0,
            "guidance_scale_2": 1.0 if len(kind.experts) > 1 else None,
            "step_cache": None,
        }

    def apply(self, request: VideoRequest, kind: ModelKind) -> VideoRequest:
        """The request with all that the preset decides.

        Raises:
            InputError: it says something else already; the preset's own values may be said.
        """
        decided = self.decides(kind)
        for field, value in decided.items():
            said = getattr(request, field)
            if said is not None and said != value:
                wanted = "none" if value is None else _in_words(value)
                raise InputError(
                    f"{field} is {_in_words(said)} and the preset {self.name} has {wanted}, which "
                    f"it was distilled for; leave {field} out, or the preset"
                )
        return dataclasses.replace(request, fast=self.name, **decided)

    def check_adapters(self, given: Collection[str], kind: ModelKind, model: str) -> None:
        """Refuses a run whose transformers lack the adapters that make them fast.

        Args:
            given: the transformers that something is added to.
            kind: of the model.
            model: what messages call it.

        Raises:
            InputError: says which adapters to give.
        """
        if not self.adapters or set(kind.experts) <= set(given):
            return
        lacking = [each for each in kind.experts if each not in given]
        which = "it has none" if not given else f"its {' and '.join(lacking)} has none"
        raise InputError(
            f"the preset {self.name} needs {model} with the adapters "
            f"{' and '.join(self.adapters)}, by --lora, and {which}"
        )

    def to_json(self) -> dict[str, Any]:
        """For metadata and listings."""
        return {
            "name": self.name,
            "label": self.label,
            "sigmas": list(self.sigmas),
            "timesteps": [round(1000 * sigma, 2) for sigma in self.sigmas],
            "update": self.scheduler,
            "guidance_scale": 1.0,
            "adapters": list(self.adapters),
            "source": self.source,
        }


def _in_words(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{each:.4g}" for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shifted(num_steps: int, shift: float) -> tuple[float, ...]:
    """Evenly spaced levels 1, ..., 1 / num_steps, moved towards high noise."""
    even = [1 - step / num_steps for step in range(num_steps)]
    return tuple(shift * x / (1 + (shift - 1) * x) for x in even)


def _trig_flow(sigma_max: float) -> tuple[float, ...]:
    """rCM's times atan(sigma_max), 1.5, 1.4, 1 as levels, sin / (sin + cos)."""
    times = (math.atan(sigma_max), 1.5, 1.4, 1.0)
    return tuple(math.sin(t) / (math.sin(t) + math.cos(t)) for t in times)


_A14B = (family.TEXT_TO_VIDEO_A14B, family.IMAGE_TO_VIDEO_A14B)
_A14B_FILES = tuple(
    f"wan2.2_{{t2v|i2v}}_A14b_{noise}_noise_lora_rank64_lightx2v_4step_*.safetensors@{noise}"
    for noise in ("high", "low")
)
_A14B_HUB = tuple(
    (
        kind,
        tuple(
            f"lightx2v/Wan2.2-Distill-Loras/wan2.2_{task}_A14b_{noise}_noise_lora_rank64_lightx2v_"
            f"4step_{made}.safetensors"
            for noise in ("high", "low")
        ),
    )
    for kind, task, made in zip(_A14B, ("t2v", "i2v"), ("1217", "1022"), strict=True)
)
_14B = (family.TEXT_TO_VIDEO, family.IMAGE_TO_VIDEO)
_14B_HUB = tuple(
    (kind, (f"lightx2v/Wan2.1-Distill-Loras/wan2.1_{task}_lora_rank64_lightx2v_4step.safetensors",))
    for kind, task in zip(_14B, ("t2v_14b", "i2v"), strict=True)
)

WAN_TINY_4 = FastPreset(
    name="wan-tiny-4",
    label="wan-tiny in 4 steps",
    sigmas=_shifted(4, 5.0),
    scheduler=EULER,
    adapters=("wan-tiny-4.safetensors",),
    embedded="demo/wan-tiny-4.safetensors",
    source="wan_tpu.demo.distill, which made the adapter",
)
"""Of the model in the package."""

FASTWAN_3 = FastPreset(
    name="fastwan-3",
    label="FastWan, 3 steps",
    sigmas=(1.0, 0.757, 0.522),
    scheduler=RENOISE,
    kinds=(family.TEXT_TO_VIDEO, family.TEXT_IMAGE_TO_VIDEO),
    called=r"fastwan",
    source="FastVideo, fastvideo/configs/pipelines/wan.py: dmd_denoising_steps 1000, 757, 522",
)

PRESETS: Sequence[FastPreset] = (
    FastPreset(
        name="lightx2v-a14b-4",
        label="LightX2V distilled LoRAs for Wan 2.2 A14B, 4 steps",
        sigmas=_shifted(4, 5.0),  # 1, .9375, .8333, .625
        scheduler=EULER,
        kinds=_A14B,
        adapters=_A14B_FILES,
        hub=_A14B_HUB,
        source="Wan2.2-Lightning's README and issue 3: Euler, timesteps 1000, 937.5, 833.3, 625",
    ),
    FastPreset(
        name="lightx2v-a14b-8",
        label="LightX2V distilled LoRAs for Wan 2.2 A14B, 8 steps",
        sigmas=_shifted(8, 5.0),
        scheduler=EULER,
        kinds=_A14B,
        adapters=_A14B_FILES,
        hub=_A14B_HUB,
        source="the author in Wan2.2-Lightning's issue 3",
    ),
    FastPreset(
        name="lightx2v-14b-4",
        label="LightX2V distilled LoRA for Wan 2.1 14B, 4 steps",
        sigmas=_shifted(4, 5.0),
        scheduler=EULER,
        kinds=_14B,
        num_heads=40,
        adapters=("wan2.1_{t2v_14b|i2v}_lora_rank64_lightx2v_4step.safetensors",),
        hub=_14B_HUB,
        source="LightX2V, configs/distill/wan21 and schedulers/wan/step_distill/scheduler.py",
    ),
    FASTWAN_3,
    FastPreset(
        name="rcm-4",
        label="rCM (TurboWan) text to video, 4 steps",
        sigmas=_trig_flow(80.0),  # .9877, .9338, .8529, .6090
        scheduler=RENOISE,
        kinds=(family.TEXT_TO_VIDEO,),
        called=r"turbo-?wan|rcm",
        source="NVlabs/rcm, rcm/inference/wan2pt1_t2v_rcm_infer.py, sigma_max 80",
    ),
    FastPreset(
        name="rcm-i2v-4",
        label="rCM (TurboWan) image to video A14B, 4 steps",
        sigmas=_trig_flow(200.0),  # .9950, .9338, .8529, .6090
        scheduler=RENOISE,
        kinds=(family.IMAGE_TO_VIDEO_A14B,),
        called=r"turbo-?wan|rcm",
        source="NVlabs/rcm, rcm/inference/wan2pt2_i2v_rcm_infer.py, sigma_max 200",
    ),
)
"""Those of public models, the preferred one of a kind first."""
