"""Padding for splash's kernels: lengths made multiples of tiles, and padding keys kept out.

The masks answer one row for all rows of a tile, since they are alike: splash asks only whether any
or all of a tile is set. Its own FullMask makes every tile, 1.3 s against 0.05 s for 75,600 tokens.
"""

import dataclasses
import enum

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jaxtyping import Array, Float

from wan_tpu.attention.arrays import Keys

PADDING_SCORE = -1e30
"""Score of a padding key: exp of it is 0, and sums with it stay finite in float32 and bfloat16."""


class Padding(enum.Enum):
    """How padding keys are kept out of the softmax."""

    COMPARE = "compare"
    FEATURE = "feature"


def only_real(x: Keys, num_real: int, padded: int) -> Float[Array, "batch length heads head_dim"]:
    """Takes what stands at `num_real` and later out of [batch, length, heads, head_dim].

    Where the length reaches `padded`, zeros overwrite it (an elementwise pass that the compiler
    joins with its neighbours); where it does not, it is cut off.
    """
    if x.shape[1] < padded:
        return x[:, :num_real]
    x = x[:, :padded]
    if num_real == padded:
        return x
    position = jax.lax.broadcasted_iota(jnp.int32, (1, padded, 1, 1), 1)
    return jnp.where(position < num_real, x, 0)


def pad(
    x: Float[Array, "batch heads tokens head_dim"], length: int, features: int, fill: float = 0
) -> Float[Array, "batch heads {length} {features}"]:
    """[batch, heads, tokens, head_dim] -> [batch, heads, length, features], in one pass."""
    widths = ((0, 0), (0, 0), (0, length - x.shape[2]), (0, features - x.shape[3]))
    return jnp.pad(x, widths, constant_values=fill)


def set_feature(
    key: Float[Array, "batch heads keys features"], num_keys: int, feature: int
) -> Float[Array, "batch heads keys features"]:
    """Sets one feature of padding keys to `PADDING_SCORE`; the queries' are 1 there.

    Args:
        key: [batch, heads, padded keys, features], zeros in that feature.
        num_keys: real keys.
        feature: which.
    """
    is_padding = jax.lax.broadcasted_iota(jnp.int32, key.shape, 2) >= num_keys
    is_feature = jax.lax.broadcasted_iota(jnp.int32, key.shape, 3) == feature
    return jnp.where(is_padding & is_feature, jnp.asarray(PADDING_SCORE, key.dtype), key)


@dataclasses.dataclass(frozen=True)
class AllKeys(splash_mask.Mask):
    """Every query attends to every key."""

    mask_shape: tuple[int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """Queries and keys."""
        return self.mask_shape

    def __getitem__(self, idx: tuple[slice, slice]) -> np.ndarray:
        keys = idx[1]
        return np.ones((1, keys.stop - keys.start), np.bool_)


@dataclasses.dataclass(frozen=True)
class FirstKeys(splash_mask.Mask):
    """Every query attends to the keys before `num_keys`; the kernel computes it from positions."""

    mask_shape: tuple[int, int]
    num_keys: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Queries and keys."""
        return self.mask_shape

    def __getitem__(self, idx: tuple[slice, slice]) -> np.ndarray:
        keys = idx[1]
        return np.arange(keys.start, keys.stop)[None] < self.num_keys

    @property
    def q_sequence(self) -> np.ndarray:
        """Positions of the queries, which splash hands to `mask_function`; not used there."""
        return np.zeros(self.mask_shape[0], np.int32)

    @property
    def mask_function(self) -> "_KeysBefore":
        """What the kernel calls on positions."""
        return _KeysBefore(self.num_keys)


@dataclasses.dataclass(frozen=True)
class _KeysBefore:
    """Tells which positions of a tile, [rows, keys] int32, are before `num_keys`.

    A value and not a closure, so that equal ones are traced once.
    """

    num_keys: int

    def __call__(self, _query_positions: Array, key_positions: Array) -> Array:
        return key_positions < self.num_keys
