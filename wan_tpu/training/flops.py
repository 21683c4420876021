"""The arithmetic of a training step, counted from the model's sizes: what MFU is a share of.

Products alone, two operations for each multiplication; what is computed twice to save memory is not
counted, and padding is not either (the usual count of "model FLOPs": Chowdhery et al. 2022,
arXiv:2204.02311, appendix B).
"""

from wan_tpu.geometry import TEXT_TOKENS, Geometry
from wan_tpu.transformer.config import TransformerConfig


def forward_flops(
    config: TransformerConfig,
    geometry: Geometry,
    image_tokens: int = 0,
    *,
    with_context: bool = True,
) -> tuple[float, float]:
    """Of one sample through the transformer once.

    Args:
        config: sizes of the model.
        geometry: of the sample.
        image_tokens: of the image encoder.
        with_context: whether keys and values of text and pictures are made; a denoising step finds
            them made.

    Returns:
        In products with weights, and in those between activations (attention).
    """
    tokens, dim, layers = geometry.num_tokens, config.dim, config.num_layers
    self_attention = 4 * dim * dim
    queries_and_out = 2 * dim * dim
    feed_forward = 2 * dim * config.ffn_dim
    per_token = layers * (self_attention + queries_and_out + feed_forward)
    ends = (2 * config.token_channels + config.condition_channels) * dim
    keys = TEXT_TOKENS + image_tokens
    context = layers * 2 * dim * dim * keys + (config.text_dim + dim) * dim * TEXT_TOKENS
    linear = 2.0 * (tokens * (per_token + ends) + with_context * context)
    scores = 2.0 * layers * 2 * dim * tokens * (tokens + keys)
    return linear, scores


def step_flops(
    config: TransformerConfig,
    geometry: Geometry,
    batch: int,
    *,
    trains_weights: bool,
    image_tokens: int = 0,
) -> float:
    """Of a whole step, forward and backward.

    The backward pass multiplies twice for each product of the forward one: for its input and for
    its weight, and the latter only where the weights are trained. What a LoRA adds is about a
    hundredth and not counted.

    Args:
        config: sizes of the model.
        geometry: of the samples.
        batch: samples.
        trains_weights: whether the transformer's own weights are trained.
        image_tokens: of the image encoder.
    """
    linear, scores = forward_flops(config, geometry, image_tokens)
    return batch * (linear * (3 if trains_weights else 2) + scores * 3)
