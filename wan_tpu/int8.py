"""Linears whose products are of int8: weights scaled per output channel, activations per token.

W8A8 with dynamic activations, as LLM.int8() has it without its outliers (Dettmers et al. 2022,
arXiv:2208.07339): x ~ q_x s_x and w ~ q_w s_w with s a largest magnitude over 127, so that
x w ~ (q_x q_w) s_x s_w, and the sum in the brackets is of whole numbers: it is exact, whatever
order a layout adds it up in. The matrix units of a v5e, v5p and v6e take int8 at twice the rate of
bfloat16. Knows nothing of models, meshes or files.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int8

LARGEST = 127
"""Both signs alike: -128 is not used."""

SMALLEST_MAGNITUDE = 1e-30
"""What all smaller largest magnitudes count as: a row of zeros has a scale, and 127 over any scale
is a float32."""


def int8_linear(
    x: Float[Array, "*batch in_features"],
    weight: Int8[Array, "out_features in_features"],
    scale: Float32[Array, " out_features"],
    bias: Float[Array, " out_features"] | None = None,
) -> Float[Array, "*batch out_features"]:
    """`torch.nn.Linear` of a quantised weight.

    Where a mesh splits the input's features, the largest magnitude of a token and the sum of its
    products are those of all parts: this is the global view.

    Args:
        x: `[..., in_features]`. NaN or infinity in a token makes NaN of its whole output.
        weight: `[out_features, in_features]`.
        scale: of each of its rows.
        bias: `[out_features]`; None for none.

    Returns:
        `[..., out_features]`, scaled and added to in float32 and rounded once to the dtype of `x`.
    """
    whole, scale_of_token = quantize_tokens(x)
    product = jax.lax.dot_general(
        whole,
        weight,
        (((x.ndim - 1,), (1,)), ((), ())),
        preferred_element_type=jnp.int32,  # 127^2 times 133,000 columns fit
    )
    out = product.astype(jnp.float32) * scale_of_token * scale
    out = out if bias is None else out + bias.astype(jnp.float32)
    return out.astype(x.dtype)


def quantize_tokens(
    x: Float[Array, "*batch features"],
) -> tuple[Int8[Array, "*batch features"], Float32[Array, "*batch 1"]]:
    """Tokens as whole numbers of at most 127, and what each token's are multiplied by."""
    largest = jnp.max(jnp.abs(x), axis=-1, keepdims=True).astype(jnp.float32)
    largest = jnp.maximum(largest, SMALLEST_MAGNITUDE)
    whole = jnp.round(x.astype(jnp.float32) * (LARGEST / largest)).astype(jnp.int8)
    return whole, largest / LARGEST
