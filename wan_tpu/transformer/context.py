"""Keys and values of cross-attention, made once per request from text and image tokens."""

from typing import NamedTuple

from jax.typing import DTypeLike
from jaxtyping import Array, Float

from wan_tpu.torch_bridge import Params
from wan_tpu.torch_module import LayeredModule, named_linear
from wan_tpu.transformer.config import TransformerConfig
from wan_tpu.transformer.norms import rms_norm_across_heads
from wan_tpu.transformer.processors import KeysValues

TEXT_EMBEDDER = "condition_embedder.text_embedder"
IMAGE_EMBEDDER = "condition_embedder.image_embedder"


class Projections(NamedTuple):
    """What makes a layer's keys and values of one kind of token, by the names in a block.

    Attributes:
        to_key: a linear.
        to_value: a linear.
        norm_key: of the keys.
    """

    to_key: str
    to_value: str
    norm_key: str


OF_TEXT = Projections("attn2.to_k", "attn2.to_v", "attn2.norm_k")
OF_IMAGE = Projections("attn2.add_k_proj", "attn2.add_v_proj", "attn2.norm_added_k")

CONTEXT_WEIGHTS = (
    TEXT_EMBEDDER,
    IMAGE_EMBEDDER,
    *(f"blocks.*.{name}." for name in (*OF_TEXT, *OF_IMAGE)),
)
"""What the names of weights begin with that only the context needs: no step touches them."""


def embed_image(
    module: LayeredModule,
    config: TransformerConfig,
    params: Params,
    image: Float[Array, "images image_tokens image_dim"],
) -> Float[Array, "images image_tokens dim"]:
    """Image tokens in the width of the model, with their learned positions if it has such.

    Args:
        module: diffusers' model.
        config: its sizes.
        params: at least those of its image embedder.
        image: of several pictures one after the other, in the dtype of the model.
    """
    if config.pos_embed_seq_len is not None:
        assert image.shape[1] == config.pos_embed_seq_len, (image.shape, config)
        # diffusers' module takes two pictures as two batch entries and joins them again.
        image = image.reshape(2 * image.shape[0], image.shape[1] // 2, image.shape[2])
    return module.call(IMAGE_EMBEDDER, params, image)


def keys_values(
    embedded: Float[Array, "batch keys dim"],
    weights: Params,
    projections: Projections,
    config: TransformerConfig,
    dtype: DTypeLike,
) -> KeysValues:
    """One layer's keys and values of embedded text or image tokens.

    Args:
        embedded: `[batch, tokens, dim]`.
        weights: of the layer.
        projections: of this kind of token.
        config: sizes of the model.
        dtype: of the result.
    """
    key = rms_norm_across_heads(
        named_linear(embedded, weights, projections.to_key),
        weights[f"{projections.norm_key}.weight"],
        config.dim,
        config.eps,
    )
    value = named_linear(embedded, weights, projections.to_value)
    return KeysValues(key.astype(dtype), value)
