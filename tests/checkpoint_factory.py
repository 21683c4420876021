"""Random checkpoints in diffusers format, of sizes that wan-tiny does not have."""

import json
import pathlib
import string
from collections.abc import Mapping
from typing import Any

import tokenizers
import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import UMT5Config, UMT5EncoderModel

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
