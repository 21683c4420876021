"""Trains the transformer and the text encoder of wan-tiny together, by flow matching.

Wan attends to all 512 text positions, and past the prompt they are zeros, which the text projection
turns into one and the same vector. So the training keeps the prompt's positions and one padding
position, whose score gets the logarithm of how many it stands for: the same numbers from 11
positions instead of 512 (`compact_text`).
"""

import copy
import dataclasses
import logging
import math
from typing import Any, cast

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch.nn import functional
from transformers import UMT5Config, UMT5EncoderModel

from wan_tpu.demo import data, tokenizer
from wan_tpu.demo.phases import Phase, Run, normal, run_phase

logger = logging.getLogger(__name__)

TEXT_CONFIG = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.0,
    "vocab_size": 32,
    "feed_forward_proj": "gated-gelu",
    "pad_token_id": 0,
    "eos_token_id": 1,
}
TRANSFORMER_CONFIG = {
    "num_attention_heads": 8,
    "attention_head_dim": 16,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": TEXT_CONFIG["d_model"],
    "freq_dim": 128,
    "ffn_dim": 512,
    "num_layers": 6,
    "rope_max_seq_len": 128,
}


DENOISER_PHASE = Phase(
    name="denoiser", steps=4500, batch=32, learning_rate=2e-3, warmup_steps=200, hold=0.4
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserRecipe:
    """One phase, and what it is fed."""

    phase: Phase = DENOISER_PHASE
    num_clips: int = 5400  # 25 of each scene
    prompt_dropout: float = 0.1
    # Colour, direction and background are decided near pure noise: a third of sigmas above 0.9.
    shift: float = 5.0
    ema_decay: float = 0.999


def make_models(seed: int) -> tuple[UMT5EncoderModel, WanTransformer3DModel]:
    """A fresh text encoder and transformer, 1.8 M parameters together."""
    torch.manual_seed(seed)
    text_encoder = UMT5EncoderModel(UMT5Config(**TEXT_CONFIG))
    transformer = WanTransformer3DModel(**TRANSFORMER_CONFIG)
    _turn_from_padding(transformer)
    return text_encoder, transformer


@torch.no_grad()
def _turn_from_padding(transformer: WanTransformer3DModel) -> None:
    """Lets cross-attention start on the prompt instead of on 502 padding positions out of 512.

    With zero biases in the text projection padding becomes a zero vector, so its key is `to_k.bias`
    alone. That bias points against a constant part of every query: the ten words of a prompt begin
    with a quarter of the attention (measured) instead of ten positions' share of 512, a fiftieth.
    """
    text_embedder = transformer.condition_embedder.text_embedder
    text_embedder.linear_1.bias.zero_()
    text_embedder.linear_2.bias.zero_()
    for block in transformer.blocks:
        attention: Any = block.attn2
        pattern = torch.sign(torch.randn(attention.inner_dim))
        attention.to_q.bias.copy_(0.6 * pattern)
        attention.to_k.bias.copy_(-0.1 * pattern)
        attention.to_v.bias.zero_()
        attention.norm_k.weight.fill_(2.0)


class CompactAttention:
    """Wan's attention for training, where the last text position stands for all padding."""

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=()
    ):
        """As diffusers' `WanAttnProcessor`, without images."""
        is_self = encoder_hidden_states is None
        context = hidden_states if is_self else encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states).float()).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(attn.to_k(context).float()).unflatten(2, (attn.heads, -1))
        value = attn.to_v(context).unflatten(2, (attn.heads, -1))
        bias = None
        if is_self:
            query, key = _rotate(query, *rotary_emb), _rotate(key, *rotary_emb)
        else:
            positions = context.shape[1]
            bias = query.new_zeros(1, 1, 1, positions)
            bias[..., -1] = math.log(tokenizer.TEXT_LENGTH - (positions - 1))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        # Written out: the backward pass of the fused operator takes half of a step on a CPU.
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        weights = (scores if bias is None else scores + bias).softmax(dim=-1)
        mixed = weights.type_as(value) @ value
        return attn.to_out[0](mixed.transpose(1, 2).flatten(2).type_as(hidden_states))


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE over neighbouring pairs of [batch, tokens, heads, head_dim]."""
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., 0::2].float(), sin[..., 1::2].float()
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.flatten(-2).type_as(x)


def tokenize(prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of captions, [prompts, LONGEST_PROMPT] each, padded on the right."""
    tokens = tokenizer.make_tokenizer()(
        prompts, padding="max_length", max_length=tokenizer.LONGEST_PROMPT, return_tensors="pt"
    )
    return tokens.input_ids, tokens.attention_mask


def compact_text(text_encoder, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Embeddings, zero past each prompt, and one more zero position for the rest of the 512.

    Returns:
        [batch, LONGEST_PROMPT + 1, d_model].
    """
    embeddings = text_encoder(ids, mask).last_hidden_state * mask[..., None]
    return functional.pad(embeddings, (0, 0, 0, 1))


def flow_loss(
    transformer, text: torch.Tensor, latents: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor
) -> torch.Tensor:
    """Mean squared error of the velocity `noise - latents`, predicted between the two."""
    wide = sigma[:, None, None, None, None]
    noised = (1 - wide) * latents + wide * noise
    velocity = transformer(noised, sigma * 1000, text, return_dict=False)[0]
    return functional.mse_loss(velocity.float(), noise - latents)


def make_optimizers(modules: list[torch.nn.Module], rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the transformer blocks' matrices, AdamW for everything else."""
    matrices, others = [], []
    for module in modules:
        for name, parameter in module.named_parameters():
            hidden = name.startswith("blocks.") and parameter.ndim == 2
            (matrices if hidden else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


@torch.no_grad()
def _follow(average: torch.nn.Module, module: torch.nn.Module, decay: float) -> None:
    for target, source in zip(average.parameters(), module.parameters(), strict=True):
        target.lerp_(source, 1 - decay)


def train_denoiser(
    latents: torch.Tensor, scene_of_clip: np.ndarray, recipe: DenoiserRecipe, run: Run
) -> tuple[UMT5EncoderModel, WanTransformer3DModel]:
    """Trains from nothing (or from the run's checkpoint).

    Args:
        latents: [clips, 16, latent_frames, latent_height, latent_width], normalised.
        scene_of_clip: [clips], index into `data.all_scenes()`.
        recipe: the phase and its feed.
        run: where and how.

    Returns:
        The averaged (EMA) text encoder and transformer.
    """
    text_encoder, transformer = make_models(run.seed)
    averages = copy.deepcopy(text_encoder), copy.deepcopy(transformer)
    transformer.set_attn_processor(cast(Any, CompactAttention()))
    prompts = [scene.prompt for scene in data.all_scenes()] + [""]
    ids, mask = tokenize(prompts)
    # The pattern matcher would turn the written-out attention back into the fused operator.
    options: dict[str, Any] = {"pattern_matcher": False}
    loss_of_batch = torch.compile(flow_loss, options=options) if run.compile else flow_loss
    phase = recipe.phase

    def loss_of_step(step: int) -> torch.Tensor:
        rng = phase.rng(run.seed, step)
        clips = rng.integers(len(latents), size=phase.batch)
        dropped = rng.random(phase.batch) < recipe.prompt_dropout
        prompt = torch.from_numpy(np.where(dropped, len(prompts) - 1, scene_of_clip[clips]))
        clean = latents[torch.from_numpy(clips)].float()
        # One sigma per stratum of the batch: the loss of a step then says little about its luck.
        uniform = torch.from_numpy((np.arange(phase.batch) + rng.random(phase.batch)) / phase.batch)
        sigma = (recipe.shift * uniform / (1 + (recipe.shift - 1) * uniform)).float()
        noise = normal(rng, tuple(clean.shape))
        with torch.autocast("cpu", torch.bfloat16):
            text = compact_text(text_encoder, ids[prompt], mask[prompt])
            return loss_of_batch(transformer, text, clean, noise, sigma)

    def after_step(step: int) -> None:
        decay = min(recipe.ema_decay, (step + 1) / (step + 10))
        _follow(averages[0], text_encoder, decay)
        _follow(averages[1], transformer, decay)

    modules = {
        "text_encoder": text_encoder,
        "transformer": transformer,
        "text_encoder_ema": averages[0],
        "transformer_ema": averages[1],
    }
    optimizers = make_optimizers([text_encoder, transformer], phase.learning_rate)
    run_phase(phase, run, modules, optimizers, loss_of_step, after_step)
    return averages
