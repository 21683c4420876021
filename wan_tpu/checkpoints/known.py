"""The public models that this library knows by heart: configurations, defaults, where they are."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from wan_tpu import family
from wan_tpu.family import IMAGE_ENCODER, TEXT_ENCODER, VAE, ModelKind
from wan_tpu.request import GenerationDefaults

WAN_TINY = "wan-tiny"
"""The text-to-video model inside the package."""

WAN_TINY_TI2V = "wan-tiny-ti2v"
"""The text-and-image-to-video model inside the package."""

EMBEDDED = (WAN_TINY, WAN_TINY_TI2V)

WAN_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，"
    "低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"
    "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""The negative prompt of Wan's own configurations (`sample_neg_prompt`)."""

I2V_NEGATIVE_PROMPT = f"镜头晃动，{WAN_NEGATIVE_PROMPT}"
"""That of Wan 2.1's image-to-video models (`wan_i2v_14B.py`); 2.2 has the plain one again."""

FLF2V_NEGATIVE_PROMPT = f"镜头切换，{I2V_NEGATIVE_PROMPT}"

UMT5_XXL = {
    "vocab_size": 256_384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10_240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
CLIP_VIT_H = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 1024,
}
WAN_VAE = {
    "latents_mean": [
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ],
    "latents_std": [
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    ],
}  # fmt: skip
WAN_2_2_VAE = {
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_spatial": 16,
    "scale_factor_temporal": 4,
    "latents_mean": [
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557,
        -0.1382, 0.0542, 0.2813, 0.0891, 0.157, -0.0098, 0.0375, -0.1825,
        -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.123,
        -0.0313, -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.052, 0.3748,
        0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
    ],
    "latents_std": [
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.499, 0.4818, 0.5013,
        0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978,
        0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093,
        0.5709, 0.6065, 0.6415, 0.4944, 0.5726, 1.2042, 0.5458, 1.6887,
        0.3971, 1.06, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ],
}  # fmt: skip
"""The autoencoder of TI2V-5B; the A14B models of Wan 2.2 have that of Wan 2.1."""

WAN_SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "num_train_timesteps": 1000,
    "solver_order": 2,
    "solver_type": "bh2",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A public model: what it is, where its weights are, how it is run.

    Attributes:
        hub_id: of its repository in diffusers format.
        kind: what it is made of and takes.
        transformer: configuration of every transformer.
        vae: configuration of the autoencoder.
        defaults: Wan's own.
    """

    hub_id: str
    kind: ModelKind
    transformer: Mapping[str, Any]
    defaults: GenerationDefaults
    vae: Mapping[str, Any] = dataclasses.field(default_factory=lambda: WAN_VAE)

    @property
    def configs(self) -> dict[str, Mapping[str, Any]]:
        """JSON configuration by component."""
        all_configs: dict[str, Mapping[str, Any]] = {
            TEXT_ENCODER: UMT5_XXL,
            IMAGE_ENCODER: CLIP_VIT_H,
            VAE: self.vae,
            **dict.fromkeys(self.kind.experts, self.transformer),
        }
        components = {name: all_configs[name] for name in self.kind.components}
        return components | {"scheduler": WAN_SCHEDULER}


_1_3B = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
_5B = {"num_attention_heads": 24, "ffn_dim": 14_336, "num_layers": 30}
_5B |= {"in_channels": 48, "out_channels": 48}
_14B = {"num_attention_heads": 40, "ffn_dim": 13_824, "num_layers": 40}
_14B_CHANNELS = {**_14B, "in_channels": 36, "out_channels": 16}
_14B_IMAGE = {**_14B_CHANNELS, "image_dim": 1280, "added_kv_proj_dim": 5120}

BETWEEN_480P_AND_720P = 600_000
"""Pixels of a frame: 832x480 has 399,360 and 1280x720 has 921,600, and what follows from a
picture's ratio hardly less."""

_480P = GenerationDefaults(negative_prompt=WAN_NEGATIVE_PROMPT)
_720P = dataclasses.replace(_480P, width=1280, height=720)
_I2V = dataclasses.replace(
    _480P,
    negative_prompt=I2V_NEGATIVE_PROMPT,
    num_inference_steps=40,
    flow_shift_by_area=((BETWEEN_480P_AND_720P, 5.0), (0, 3.0)),
)
_FLF2V = dataclasses.replace(
    _720P, negative_prompt=FLF2V_NEGATIVE_PROMPT, flow_shift_by_area=((0, 16.0),)
)
_T2V_A14B = dataclasses.replace(
    _720P,
    num_inference_steps=40,
    flow_shift_by_area=((0, 12.0),),
    guidance_scale=4.0,
    guidance_scale_2=3.0,
)
_I2V_A14B = dataclasses.replace(
    _720P, num_inference_steps=40, guidance_scale=3.5, guidance_scale_2=3.5
)
_TI2V = dataclasses.replace(_480P, width=1280, height=704, num_frames=121, fps=24)

KNOWN_MODELS: Mapping[str, KnownModel] = {
    "wan2.1-t2v-1.3b": KnownModel(
        hub_id="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        kind=family.TEXT_TO_VIDEO,
        transformer=_1_3B,
        defaults=_480P,
    ),
    "wan2.1-t2v-14b": KnownModel(
        hub_id="Wan-AI/Wan2.1-T2V-14B-Diffusers",
        kind=family.TEXT_TO_VIDEO,
        transformer=_14B,
        defaults=_720P,
    ),
    "wan2.1-i2v-14b-480p": KnownModel(
        hub_id="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
        kind=family.IMAGE_TO_VIDEO,
        transformer=_14B_IMAGE,
        defaults=_I2V,
    ),
    "wan2.1-i2v-14b-720p": KnownModel(
        hub_id="Wan-AI/Wan2.1-I2V-14B-720P-Diffusers",
        kind=family.IMAGE_TO_VIDEO,
        transformer=_14B_IMAGE,
        defaults=dataclasses.replace(_I2V, width=1280, height=720),
    ),
    "wan2.1-flf2v-14b-720p": KnownModel(
        hub_id="Wan-AI/Wan2.1-FLF2V-14B-720P-diffusers",
        kind=family.FIRST_LAST_FRAME_TO_VIDEO,
        transformer={**_14B_IMAGE, "pos_embed_seq_len": 514},
        defaults=_FLF2V,
    ),
    "wan2.2-t2v-a14b": KnownModel(
        hub_id="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        kind=family.TEXT_TO_VIDEO_A14B,
        transformer=_14B,
        defaults=_T2V_A14B,
    ),
    "wan2.2-i2v-a14b": KnownModel(
        hub_id="Wan-AI/Wan2.2-I2V-A14B-Diffusers",
        kind=family.IMAGE_TO_VIDEO_A14B,
        transformer=_14B_CHANNELS,
        defaults=_I2V_A14B,
    ),
    "wan2.2-ti2v-5b": KnownModel(
        hub_id="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
        kind=family.TEXT_IMAGE_TO_VIDEO,
        transformer=_5B,
        vae=WAN_2_2_VAE,
        defaults=_TI2V,
    ),
}


def embedded_folders() -> dict[str, pathlib.Path]:
    """Where the models inside the package lie, by name."""
    demo = pathlib.Path(str(resources.files("wan_tpu") / "demo"))
    return {name: demo / name for name in EMBEDDED if (demo / name).is_dir()}


def wan_defaults(
    kind: ModelKind, transformer: Mapping[str, Any], called: str = ""
) -> GenerationDefaults:
    """Wan's own defaults: those of the largest public model of the kind that is no larger.

    Args:
        kind: of the model.
        transformer: its configuration.
        called: names that the model has; they decide between public ones that are alike.
    """
    heads = transformer.get("num_attention_heads", 40)
    of_kind = [known for known in KNOWN_MODELS.values() if known.kind.is_like(kind)]
    fitting = [known for known in of_kind if isinstance(heads, int) and _heads(known) <= heads]
    largest = max(map(_heads, fitting or of_kind[:1]))
    return choose_by_name([k for k in of_kind if _heads(k) == largest], called).defaults


def choose_by_name(alike: Sequence[KnownModel], called: str) -> KnownModel:
    """Of models that only their names tell apart the one whose resolution is in a name, as 720p;
    else the first."""
    named = [
        known
        for known in alike
        if re.search(rf"(?<!\d){min(known.defaults.width, known.defaults.height)}p", called, re.I)
    ]
    return (named or alike)[0]


def _heads(known: KnownModel) -> int:
    return known.transformer["num_attention_heads"]


def known_by_hub_id(hub_id: str) -> KnownModel | None:
    """The known model that lies there; the hub does not tell large letters from small ones."""
    wanted = hub_id.lower()
    return next((k for k in KNOWN_MODELS.values() if k.hub_id.lower() == wanted), None)
