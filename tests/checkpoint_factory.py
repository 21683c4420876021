"""Random checkpoints in diffusers format, of sizes and kinds that wan-tiny does not have."""

import dataclasses
import json
import math
import pathlib
import string
from collections.abc import Mapping
from typing import Any

import tokenizers
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from wan_tpu.demo.tokenizer import make_tokenizer

TRANSFORMER = {
    "num_attention_heads": 3,
    "attention_head_dim": 24,
    "in_channels": 6,
    "out_channels": 6,
    "text_dim": 40,
    "freq_dim": 64,
    "ffn_dim": 100,
    "num_layers": 3,
}
VAE = {
    "base_dim": 8,
    "z_dim": 6,
    "dim_mult": [1, 2, 3, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.1 * n for n in range(6)],
    "latents_std": [1.0 + 0.2 * n for n in range(6)],
}
VAE_2_2 = {
    **VAE,
    "decoder_base_dim": 12,
    "dim_mult": [1, 2, 4, 4],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
}
"""The autoencoder of TI2V-5B: shortcuts across levels, and pixels in patches."""

MASK_CHANNELS = 4
IMAGE_TOKENS, IMAGE_DIM = 17, 32
IMAGE_ENCODER = {
    "hidden_size": IMAGE_DIM,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 224,
    "patch_size": 56,
    "hidden_act": "gelu",
    "projection_dim": 16,
}
"""Pictures have CLIP's size, so that its preprocessing is what it is; the patches are large."""

PROMPT = "a red circle moving right on a black background"


def make_random_checkpoint(
    folder: pathlib.Path,
    transformer: Mapping[str, Any] = {},
    vae: Mapping[str, Any] = {},
) -> pathlib.Path:
    """Three heads, a feed-forward width that divides by nothing, a VAE of three levels.

    Args:
        folder: where it is written.
        transformer: sizes that differ.
        vae: likewise.
    """
    torch.manual_seed(0)
    tokenizer: Any = make_tokenizer()
    scheduler: Any = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipeline = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer), d_model=40, d_kv=8, d_ff=72, num_layers=2, num_heads=4
            )
        ),
        transformer=WanTransformer3DModel(**{**TRANSFORMER, **transformer}),
        vae=AutoencoderKLWan(**{**VAE, **vae}),
        scheduler=scheduler,
    )
    for component in (pipeline.text_encoder, pipeline.transformer, pipeline.vae):
        for name, parameter in component.named_parameters():
            if parameter.ndim < 2 and "bias" not in name:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
            elif "scale_shift" in name or "bias" in name:
                parameter.data.normal_(0, 0.1)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RandomKind:
    """What one kind of model has beyond a text-to-video model.

    Attributes:
        pipeline: the class of diffusers' that its folder names.
        transformer: sizes that differ from `TRANSFORMER`.
        vae: the autoencoder's configuration.
        has_image_encoder: whether a CLIP tower is in it.
        has_two_experts: whether there is a second transformer.
        flow_shift: what Wan's converter writes into the scheduler's file.
        index: entries of `model_index.json` besides the components.
    """

    pipeline: Any = WanPipeline
    transformer: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    vae: Mapping[str, Any] = dataclasses.field(default_factory=lambda: VAE)
    has_image_encoder: bool = False
    has_two_experts: bool = False
    flow_shift: float = 3.0
    index: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_CHANNELS = {"in_channels": 2 * VAE["z_dim"] + MASK_CHANNELS}
_IMAGE_KEYS = {**_CHANNELS, "image_dim": IMAGE_DIM, "added_kv_proj_dim": 3 * 24}

RANDOM_KINDS: Mapping[str, RandomKind] = {
    "t2v": RandomKind(),
    "t2v-a14b": RandomKind(has_two_experts=True, index={"boundary_ratio": 0.875}),
    "i2v": RandomKind(
        pipeline=WanImageToVideoPipeline, transformer=_IMAGE_KEYS, has_image_encoder=True
    ),
    "flf2v": RandomKind(
        pipeline=WanImageToVideoPipeline,
        transformer={**_IMAGE_KEYS, "pos_embed_seq_len": 2 * IMAGE_TOKENS},
        has_image_encoder=True,
        flow_shift=16.0,
    ),
    "i2v-a14b": RandomKind(
        pipeline=WanImageToVideoPipeline,
        transformer=_CHANNELS,
        has_two_experts=True,
        index={"boundary_ratio": 0.9},
    ),
    "ti2v": RandomKind(vae=VAE_2_2, flow_shift=5.0, index={"expand_timesteps": True}),
}


def make_random_model(folder: pathlib.Path, kind: str) -> pathlib.Path:
    """A small model of a kind, as diffusers writes its folder; what it computes needs every input.

    Args:
        folder: where it is written.
        kind: a name of `RANDOM_KINDS`.
    """
    torch.manual_seed(sorted(RANDOM_KINDS).index(kind))
    tokenizer: Any = make_tokenizer()
    parts = make_random_parts(RANDOM_KINDS[kind], vocab_size=len(tokenizer))
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=RANDOM_KINDS[kind].flow_shift,
    )
    pipeline = RANDOM_KINDS[kind].pipeline(
        tokenizer=tokenizer, scheduler=scheduler, **parts, **RANDOM_KINDS[kind].index
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def make_random_parts(kind: RandomKind, vocab_size: int) -> dict[str, Any]:
    """The components with weights, and CLIP's preprocessing, in float32."""
    transformer = {**TRANSFORMER, **kind.transformer}
    parts: dict[str, Any] = {
        "text_encoder": UMT5EncoderModel(
            UMT5Config(
                vocab_size=vocab_size, d_model=40, d_kv=8, d_ff=72, num_layers=2, num_heads=4
            )
        ),
        "transformer": WanTransformer3DModel(**transformer),
        "vae": AutoencoderKLWan(**kind.vae),
    }
    if kind.has_two_experts:
        parts["transformer_2"] = WanTransformer3DModel(**transformer)
    if kind.has_image_encoder:
        parts["image_encoder"] = CLIPVisionModelWithProjection(CLIPVisionConfig(**IMAGE_ENCODER))
    for part in parts.values():
        _enliven(part)
    if kind.has_image_encoder:
        parts["image_processor"] = CLIPImageProcessorPil()
    return parts


@torch.no_grad()
def _enliven(module: torch.nn.Module) -> None:
    """Draws weights with which nothing dies away: each layer's output is about as large as its
    input, attention has favourites, gates are open and norms scale each channel differently."""
    for name, parameter in module.named_parameters():
        last = name.rsplit(".", 1)[-1]
        owner = module.get_submodule(name.rpartition(".")[0])
        if last == "gamma" or (last == "weight" and parameter.ndim == 1):
            # Query and key norms make the logits, which spread with the product of both.
            centre = 1.5 if ".norm_q" in name or ".norm_k" in name or "norm_added_k" in name else 1
            parameter.normal_(centre, 0.2)
        elif last == "bias":
            parameter.normal_(0, 0.1)
        elif "relative_attention_bias" in name:
            continue
        elif last == "weight" and not isinstance(owner, torch.nn.Embedding):
            parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()))
        elif last == "scale_shift_table":
            parameter.normal_(0, 0.3)
        else:  # embeddings of tokens, positions and of the whole picture
            parameter.normal_(0, 1)


def save_umt5_tokenizer(folder: pathlib.Path) -> None:
    """A small tokenizer of UMT5's form, in a folder that names T5's class as Wan's do.

    What T5's class would lose is in it: byte fallback, an unknown token at 3, a normalizer.
    """
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    pieces += [("▁", -3.0), (",", -4.0)] + [(letter, -8.0) for letter in string.ascii_letters]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    metaspace = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), metaspace])
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    backend.add_special_tokens(["<pad>", "</s>", "<s>", "<unk>"])
    backend.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "T5Tokenizer",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "model_max_length": 512,
        "extra_ids": 0,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
