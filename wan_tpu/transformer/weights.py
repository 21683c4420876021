"""The denoiser's parameters: names, shapes and dtypes from diffusers' module, order and split ours.

Heads are padded so that every device holds whole ones (`Layout.padded_heads`), the feed-forward
width to a multiple of tp; padding rows are zero and leave the result as it is. Rows of the
self-attention queries and keys are put in half-split order (`rotary.py`), rows of the output
projection in the token's channel order (patch frames, rows, columns, channels), which is
diffusers' own.
"""

import functools
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jax.typing import DTypeLike
from jaxtyping import Int

from wan_tpu.checkpoints.weights import ZERO, Weight
from wan_tpu.geometry import ceil_to_multiple
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.rules import split_weight
from wan_tpu.torch_module import (
    WEIGHT_SCALE,
    LayeredModule,
    Placement,
    quantize_linears,
    replace_linears,
)
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.transformer.rotary import half_split_rows

_FLOAT32 = ("time_embedder", "scale_shift_table", "norm1", "norm2", "norm3")
"""Parts kept in float32 whatever the dtype, as diffusers' `_keep_in_fp32_modules`, which means the
norms around an image's projection, too."""

LAYERS = "blocks"
"""Where the model's layers are; their linears, and no others, are quantised."""


@functools.cache
def denoiser_module(config: TransformerConfig, quantize: str | None = None) -> LayeredModule:
    """diffusers' model: names, shapes and code, no numbers.

    Args:
        config: sizes of the model.
        quantize: `int8` for blocks whose linears are; None for none.
    """
    from diffusers import WanTransformer3DModel

    one_layer: dict[str, Any] = config.to_json() | {"num_layers": 1}
    with torch.device("meta"):
        template = WanTransformer3DModel(**one_layer).eval()
    replace_linears(template)
    if quantize is not None:
        quantize_linears(template.get_submodule(LAYERS))
    return LayeredModule(template=template, layers=LAYERS, num_layers=config.num_layers)


def denoiser_weights(
    config: TransformerConfig, layout: Layout, dtype: DTypeLike, quantize: str | None = None
) -> list[Weight]:
    """Every parameter of the denoiser under a layout.

    Args:
        config: sizes of the model.
        layout: decides padding and split.
        dtype: of the weights; a few small ones stay float32.
        quantize: as of `denoiser_module`; a weight of int8 is followed by its rows' scales, which
            are split and ordered as its rows are.
    """
    module = denoiser_module(config, quantize)
    of_layer = dict(module.layer.named_parameters())
    whole_numbers = {name for name, weight in of_layer.items() if weight.dtype == torch.int8}

    def placement(name: str, shape: tuple[int, ...]) -> Placement:
        part = name.removeprefix(module.stacked_prefix)
        rows, tp_dim = _order(part, config, layout)
        padded = tuple(len(rows[dim]) if dim in rows else n for dim, n in enumerate(shape))
        stays_float32 = set(part.split(".")) & {*_FLOAT32, WEIGHT_SCALE}
        return Placement(
            dtype=jnp.int8 if part in whole_numbers else jnp.float32 if stays_float32 else dtype,
            rows=rows,
            spec=split_weight(padded, layout, tp_dim=tp_dim),
        )

    return module.weights(placement)


def matrices_of_blocks(weights: Iterable[Weight]) -> list[Weight]:
    """Of a denoiser's parameters the matrices of its blocks: what a LoRA's trainers change."""
    return [
        weight
        for weight in weights
        if weight.stacked and len(weight.tensor_shape) == 2 and weight.name.endswith(".weight")
    ]


def _order(
    part: str, config: TransformerConfig, layout: Layout
) -> tuple[dict[int, Int[np.ndarray, " rows"]], int | None]:
    """Which checkpoint row each row takes, and which dimension tensor parallelism splits.

    Args:
        part: name of the parameter, within its layer where it is in one.
        config: sizes of the model.
        layout: decides padding.
    """
    heads = _padded_heads(config, layout, half_split=False)
    rotated = _padded_heads(config, layout, half_split=True)
    hidden = np.full(ceil_to_multiple(config.ffn_dim, layout.tp), ZERO)
    hidden[: config.ffn_dim] = np.arange(config.ffn_dim)
    match part.split("."):
        case ["attn1", "to_q" | "to_k" | "norm_q" | "norm_k", _]:
            return {0: rotated}, 0
        case ["attn1" | "attn2", "to_q" | "to_k" | "to_v" | "norm_q" | "norm_k", _]:
            return {0: heads}, 0
        case ["attn2", "add_k_proj" | "add_v_proj" | "norm_added_k", _]:
            return {0: heads}, 0
        case ["attn1" | "attn2", "to_out", "0", "weight"]:
            return {1: heads}, 1
        case ["ffn", "net", "0", "proj", _]:
            return {0: hidden}, 0
        case ["ffn", "net", "2", "weight"]:
            return {1: hidden}, 1
    return {}, None


def _padded_heads(
    config: TransformerConfig, layout: Layout, *, half_split: bool
) -> Int[np.ndarray, " rows"]:
    """Checkpoint rows of a projection onto heads, padding heads `ZERO` at the end."""
    head_dim = config.attention_head_dim
    padded = np.full(layout.padded_heads(config.num_attention_heads) * head_dim, ZERO)
    rows = (
        half_split_rows(config.num_attention_heads, head_dim)
        if half_split
        else np.arange(config.dim)
    )
    padded[: config.dim] = rows
    return padded
