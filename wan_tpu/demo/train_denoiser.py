"""Trains the transformer and the text encoder of an embedded model together, by flow matching.

A model that takes a picture learns both of its modes in every batch: from noise alone, and with the
first latent frame given, whose tokens have a timestep of 0 (the per-token timesteps of Wan 2.2's
TI2V-5B). The latent of a picture is the first latent of the clip that begins with it, because the
autoencoder is causal.

Wan attends to all 512 text positions, and past the prompt they are zeros, which the text projection
turns into one and the same vector. So the training keeps the prompt's positions and one padding
position, whose score gets the logarithm of how many it stands for: the same numbers from 11
positions instead of 512 (`compact_text`).
"""

import copy
import dataclasses
import logging
import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from diffusers import WanTransformer3DModel
from torch.nn import functional
from transformers import UMT5Config, UMT5EncoderModel

from wan_tpu.demo import data, tokenizer
from wan_tpu.demo.muon import BatchedMuon
from wan_tpu.demo.phases import Inputs, Phase, Run, normal, run_phase

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
# Besides the channels, which are the autoencoder's.
TRANSFORMER_CONFIG: dict[str, Any] = {
    "num_attention_heads": 8,
    "attention_head_dim": 16,
    "text_dim": TEXT_CONFIG["d_model"],
    "freq_dim": 128,
    "ffn_dim": 512,
    "num_layers": 6,
    "rope_max_seq_len": 128,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserRecipe:
    """One phase, and what it is fed.

    Attributes:
        phase: its schedule.
        num_clips: the size of the training set.
        given_share: how often the first latent frame is given.
        prompt_dropout: how often the prompt is left out, for guidance.
        shift: of the noise levels. Colour, direction and background are decided near pure noise:
            with 5 a third of sigmas are above 0.9.
        ema_decay: of the average that is kept.
    """

    phase: Phase
    num_clips: int
    given_share: float = 0.0
    prompt_dropout: float = 0.1
    shift: float = 5.0
    ema_decay: float = 0.999


def make_models(seed: int, channels: int) -> tuple[UMT5EncoderModel, WanTransformer3DModel]:
    """A fresh text encoder and transformer, 1.8 M parameters together."""
    torch.manual_seed(seed)
    text_encoder = UMT5EncoderModel(UMT5Config(**TEXT_CONFIG))
    transformer = WanTransformer3DModel(
        **TRANSFORMER_CONFIG, in_channels=channels, out_channels=channels
    )
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
            bias[..., -1].fill_(math.log(tokenizer.TEXT_LENGTH - (positions - 1)))
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
    # The mask as the layers want it: made by the encoder it costs a look at its values, which an
    # accelerator would have to wait for.
    hidden = torch.where(mask[:, None, None, :] > 0, 0.0, torch.finfo(torch.float32).min)
    hidden = hidden.expand(-1, 1, mask.shape[1], -1)
    embeddings = text_encoder(ids, hidden).last_hidden_state * mask[..., None]
    return functional.pad(embeddings, (0, 0, 0, 1))


def flow_loss(
    transformer,
    text: torch.Tensor,
    latents: torch.Tensor,
    noise: torch.Tensor,
    sigma: torch.Tensor,
    given: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean squared error of the velocity `noise - latents`, predicted between the two.

    Args:
        transformer: predicts.
        text: [batch, positions, d_model].
        latents: [batch, channels, latent_frames, latent_height, latent_width], normalised.
        noise: as the latents.
        sigma: [batch], the noise levels.
        given: [batch], 1 where the first latent frame is given, clean, and 0 elsewhere; None for a
            model that never takes one.
    """
    frames, height, width = latents.shape[2:]
    if given is None:
        unknown, level, timestep = None, sigma[:, None], sigma * 1000
    else:
        unknown = 1 - functional.pad(given[:, None], (0, frames - 1))  # [batch, frames]
        level = sigma[:, None] * unknown
        timestep = level.repeat_interleave(height * width // 4, dim=1) * 1000  # [batch, tokens]
    level = level[:, None, :, None, None]
    noised = (1 - level) * latents + level * noise
    velocity = transformer(noised, timestep, text, return_dict=False)[0]
    error = (velocity.float() - (noise - latents)).square()
    if unknown is None:
        return error.mean()
    return (error.mean((1, 3, 4)) * unknown).sum() / unknown.sum()


def make_optimizers(modules: list[torch.nn.Module], rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the transformer blocks' matrices, AdamW for everything else."""
    matrices, others = [], []
    for module in modules:
        for name, parameter in module.named_parameters():
            hidden = name.startswith("blocks.") and parameter.ndim == 2
            (matrices if hidden else others).append(parameter)
    return [
        BatchedMuon(matrices, lr=rate, weight_decay=0.01),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


@torch.no_grad()
def _follow(average: torch.nn.Module, module: torch.nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)


def train_denoiser(
    latents: torch.Tensor, scene_of_clip: np.ndarray, recipe: DenoiserRecipe, run: Run
) -> tuple[UMT5EncoderModel, WanTransformer3DModel]:
    """Trains from nothing (or from the run's checkpoint).

    Args:
        latents: [clips, channels, latent_frames, latent_height, latent_width], normalised, on the
            run's device.
        scene_of_clip: [clips], index into `data.all_scenes()`.
        recipe: the phase and its feed.
        run: where and how.

    Returns:
        The averaged (EMA) text encoder and transformer.
    """
    text_encoder, transformer = (
        cast(Any, module).to(run.device) for module in make_models(run.seed, latents.shape[1])
    )
    averages = copy.deepcopy(text_encoder), copy.deepcopy(transformer)
    transformer.set_attn_processor(cast(Any, CompactAttention()))
    draw = _draw(latents, scene_of_clip, recipe, run)
    # The pattern matcher would turn the written-out attention back into the fused operator.
    options: dict[str, Any] = {"pattern_matcher": False}
    compiled = run.compile and run.device == "cpu"
    loss_of_batch = torch.compile(flow_loss, options=options) if compiled else flow_loss

    def loss_of(ids: torch.Tensor, mask: torch.Tensor, *batch: torch.Tensor) -> torch.Tensor:
        with torch.autocast(run.device, torch.bfloat16):
            return loss_of_batch(transformer, compact_text(text_encoder, ids, mask), *batch)

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
    optimizers = make_optimizers([text_encoder, transformer], recipe.phase.learning_rate)
    run_phase(recipe.phase, run, modules, optimizers, draw, loss_of, after_step)
    return averages


def _draw(
    latents: torch.Tensor, scene_of_clip: np.ndarray, recipe: DenoiserRecipe, run: Run
) -> Callable[[int], Inputs]:
    """What a step is fed: ids and mask of the prompts, and what `flow_loss` takes after them."""
    prompts = [scene.prompt for scene in data.all_scenes()] + [""]
    ids, mask = (part.to(run.device) for part in tokenize(prompts))
    phase = recipe.phase

    def draw(step: int) -> Inputs:
        rng = phase.rng(run.seed, step)
        clips = rng.integers(len(latents), size=phase.batch)
        dropped = rng.random(phase.batch) < recipe.prompt_dropout
        prompt = np.where(dropped, len(prompts) - 1, scene_of_clip[clips])
        prompt = torch.from_numpy(prompt).to(run.device)
        clean = latents[torch.from_numpy(clips).to(run.device)].float()
        # One sigma per stratum of the batch: the loss of a step then says little about its luck.
        uniform = torch.from_numpy((np.arange(phase.batch) + rng.random(phase.batch)) / phase.batch)
        sigma = (recipe.shift * uniform / (1 + (recipe.shift - 1) * uniform)).float()
        noise = normal(rng, tuple(clean.shape), run.device)
        inputs = ids[prompt], mask[prompt], clean, noise, sigma.to(run.device)
        if not recipe.given_share:
            return inputs
        given = torch.from_numpy(rng.random(phase.batch) < recipe.given_share).float()
        return *inputs, given.to(run.device)

    return draw
