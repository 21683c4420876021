"""Keys as whole numbers of 8 bits, less their mean: what `flash-int8` attends to.

SageAttention's keys (Zhang et al. 2024, arXiv:2410.02367, section 4.2): a vector that is the same
for all keys of a head adds the same to all scores of a query, and softmax does not see it. Wan's
keys have such a part, so without it there is more of the 8 bits for what differs. Any vector
will do: the mean is rounded to bfloat16, so that the order in which a layout adds it up is hardly
ever seen in the result.

One scale for all keys of a head and batch entry: the scores of a query then need one factor
whichever key they are of. Queries are quantised by the kernel, a token each
(`wan_tpu.attention.flash_int8`). Knows nothing of meshes: over tokens that a mesh splits, mean and
largest magnitude are sums and maxima over its shards, for this is the global view.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int8

from wan_tpu.attention.arrays import Grouped, Keys
from wan_tpu.int8 import LARGEST, SMALLEST_MAGNITUDE


class QuantizedKeys(NamedTuple):
    """Keys of which `values * scale` is what differs from key to key.

    Attributes:
        values: at most 127 in magnitude; 0 where a key is padding. `[batch, keys, heads,
            head_dim]`, or in the chunks that devices exchange, `[chunks, batch, chunk,
            heads * head_dim]`: token t of chunk c is number `c * chunk + t`.
        scale: `[batch, heads]` in both forms, float32.
    """

    values: Int8[Array, "*shape"]
    scale: Float32[Array, "batch heads"]


class GroupedKeys(NamedTuple):
    """`QuantizedKeys` of all devices, in the groups of heads that they exchange.

    Attributes:
        values: `[groups, batch, tokens, heads of a group * head_dim]`.
        scale: `[groups, batch, heads of a group]`, float32.
    """

    values: Int8[Array, "groups batch tokens group_channels"]
    scale: Float32[Array, "groups batch group_heads"]


def quantize_keys(key: Keys, num_keys: int) -> QuantizedKeys:
    """Keys less their mean over tokens, as whole numbers with one scale a head.

    Args:
        key: `[batch, keys, heads, head_dim]`. NaN or infinity in a real key makes the scale of its
            head NaN.
        num_keys: keys at this position and later are padding: whatever they hold is in neither the
            mean nor the scale, and becomes 0.
    """
    batch, keys, heads, head_dim = key.shape
    grouped = quantize_grouped(
        key.reshape(1, batch, keys, heads * head_dim), head_dim=head_dim, num_keys=num_keys
    )
    return QuantizedKeys(grouped.values.reshape(key.shape), grouped.scale[0])


def quantize_grouped(key: Grouped, *, head_dim: int, num_keys: int) -> GroupedKeys:
    """`quantize_keys` of keys in groups of heads; global view.

    Two passes over the keys: one for sums, maxima and minima of each feature, one that quantises.
    Heads are never split from features, which would lay the keys out anew in a TPU's memory.

    Args:
        key: `[groups, batch, tokens, heads of a group * head_dim]`.
        head_dim: features of a head.
        num_keys: as of `quantize_keys`.
    """
    groups, batch, tokens, _ = key.shape
    assert 1 <= num_keys <= tokens, (num_keys, key.shape)
    is_real = (jnp.arange(tokens) < num_keys)[:, None]
    exact = key.astype(jnp.float32)
    mean = _mean(exact, is_real)  # [groups, batch, 1, channels]
    above, below = (
        jnp.where(is_real, signed, -jnp.inf).max(2, keepdims=True) for signed in (exact, -exact)
    )
    # The largest magnitude of key - mean, as exactly as if it were taken of each difference.
    largest = jnp.maximum(above - mean, below + mean).reshape(groups, batch, -1, head_dim).max(-1)
    largest = jnp.maximum(largest, SMALLEST_MAGNITUDE)  # [groups, batch, heads of a group]
    factor = _of_each_feature(LARGEST / largest, head_dim)
    values = jnp.where(is_real, jnp.round((exact - mean) * factor), 0).astype(jnp.int8)
    return GroupedKeys(values, largest / LARGEST)


def mean_of_keys(key: Keys, num_keys: int) -> Float32[Array, "batch 1 heads head_dim"]:
    """What `quantize_keys` takes off its keys; arguments as of it."""
    is_real = (jnp.arange(key.shape[1]) < num_keys)[:, None]
    joined = key.reshape(*key.shape[:2], -1).astype(jnp.float32)
    return _mean(joined, is_real).reshape(len(key), 1, *key.shape[2:])


def _mean(
    exact: Float32[Array, "*groups tokens channels"], is_real: Bool[Array, "tokens 1"]
) -> Float32[Array, "*groups 1 channels"]:
    """Over the real tokens; numbers of bfloat16."""
    mean = jnp.where(is_real, exact, 0).sum(-2, keepdims=True) / is_real.sum()
    # Not as a cast and back, which XLA leaves out where it may be more exact.
    return jax.lax.reduce_precision(mean, exponent_bits=8, mantissa_bits=7)


def _of_each_feature(
    of_heads: Float32[Array, "groups batch group_heads"], head_dim: int
) -> Float[Array, "groups batch 1 group_channels"]:
    """What is one number a head, for each of its features and all tokens."""
    return jnp.repeat(of_heads, head_dim, axis=-1)[:, :, None]
