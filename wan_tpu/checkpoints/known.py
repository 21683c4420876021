"""The public models that this library knows by heart: configurations, defaults, and how to tell a
transformer's file by its tensors.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from importlib import resources
from typing import Any

from wan_tpu.checkpoints.files import read_json
from wan_tpu.checkpoints.source import TensorSource
from wan_tpu.errors import CheckpointError
from wan_tpu.request import GenerationDefaults

WAN_TINY = "wan-tiny"
"""The model inside the package."""

WAN_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，"
    "低质量，JPEG压缩残留，丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，"
    "形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，倒着走"
)
"""The negative prompt of Wan 2.1's own configuration (`sample_neg_prompt`)."""

UMT5_XXL = {
    "vocab_size": 256_384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10_240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
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
    """A public model: where its weights are and what its transformer looks like."""

    hub_id: str
    transformer: Mapping[str, Any]
    defaults: GenerationDefaults

    @property
    def configs(self) -> dict[str, Mapping[str, Any]]:
        """JSON configuration by component."""
        return {
            "text_encoder": UMT5_XXL,
            "transformer": self.transformer,
            "vae": WAN_VAE,
            "scheduler": WAN_SCHEDULER,
        }


WAN_DEFAULTS = GenerationDefaults(negative_prompt=WAN_NEGATIVE_PROMPT)
WAN_720P_DEFAULTS = dataclasses.replace(WAN_DEFAULTS, width=1280, height=720)

KNOWN_MODELS: Mapping[str, KnownModel] = {
    "wan2.1-t2v-1.3b": KnownModel(
        hub_id="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        transformer={"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
        defaults=WAN_DEFAULTS,
    ),
    "wan2.1-t2v-14b": KnownModel(
        hub_id="Wan-AI/Wan2.1-T2V-14B-Diffusers",
        transformer={"num_attention_heads": 40, "ffn_dim": 13_824, "num_layers": 40},
        defaults=WAN_720P_DEFAULTS,
    ),
}


def wan_tiny_folder() -> pathlib.Path:
    """Where the model inside the package lies."""
    return pathlib.Path(str(resources.files("wan_tpu") / "demo" / WAN_TINY))


def wan_defaults(transformer: Mapping[str, Any]) -> GenerationDefaults:
    """Wan's own defaults for a transformer of this size."""
    small = transformer.get("num_attention_heads") in range(1, 40)
    return WAN_DEFAULTS if small else WAN_720P_DEFAULTS


def known_by_hub_id(hub_id: str) -> KnownModel | None:
    """The known model that lies there."""
    return next((known for known in KNOWN_MODELS.values() if known.hub_id == hub_id), None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Sizes:
    """What tells one transformer of the family from another."""

    dim: int
    in_channels: int
    num_layers: int
    ffn_dim: int
    text_dim: int

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "_Sizes":
        """By diffusers' `transformer/config.json`."""
        heads = config["num_attention_heads"] * config.get("attention_head_dim", 128)
        return cls(
            dim=heads,
            in_channels=config.get("in_channels", 16),
            num_layers=config["num_layers"],
            ffn_dim=config["ffn_dim"],
            text_dim=config.get("text_dim", 4096),
        )

    @classmethod
    def of_shapes(cls, shapes: Mapping[str, tuple[int, ...]]) -> "_Sizes":
        """By the shapes of diffusers' tensors; 0 where one lacks or is of other dimensions."""

        def size(name: str, dim: int) -> int:
            shape = shapes.get(name, ())
            return shape[dim] if dim < len(shape) else 0

        layers = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
        return cls(
            dim=size("patch_embedding.weight", 0),
            in_channels=size("patch_embedding.weight", 1),
            num_layers=len(layers),
            ffn_dim=size("blocks.0.ffn.net.0.proj.weight", 0),
            text_dim=size("condition_embedder.text_embedder.linear_1.weight", 1),
        )


def recognise_transformer(source: TensorSource) -> str:
    """Which known model a transformer is of, by its tensors' shapes.

    Args:
        source: by diffusers' names.

    Returns:
        A name of `KNOWN_MODELS`, or `WAN_TINY`.

    Raises:
        CheckpointError: it is of another model; says of which, as far as that can be seen.
    """
    shapes, what = source.shapes, source.description
    if any(name.startswith("vace_blocks.") for name in shapes):
        raise CheckpointError(f"{what} is a transformer of VACE, which is not implemented yet")
    if any(".k_img." in n or ".add_k_proj." in n or n.startswith("img_emb.") for n in shapes):
        raise CheckpointError(f"{what} is of an image-to-video model: not implemented yet")
    sizes = _Sizes.of_shapes(shapes)
    known = {name: _Sizes.of_config(model.transformer) for name, model in KNOWN_MODELS.items()}
    tiny = read_json(wan_tiny_folder() / "transformer" / "config.json")
    for name, expected in {**known, WAN_TINY: _Sizes.of_config(tiny)}.items():
        if sizes == expected:
            return name
    other = {36: "an image-to-video model", 48: "Wan 2.2 TI2V-5B"}.get(sizes.in_channels)
    if other:
        raise CheckpointError(f"{what} is of {other}: not implemented yet")
    raise CheckpointError(
        f"{what} is a transformer of {sizes.num_layers} layers, width {sizes.dim}, feed-forward "
        f"width {sizes.ffn_dim} and {sizes.in_channels} input channels, which is none of "
        f"{', '.join(KNOWN_MODELS)}; give the folder in diffusers format that it is from"
    )
