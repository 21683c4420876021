"""Norm, rotation and grouping of queries and keys in one pass over memory: a kernel for TPU.

As separate operations XLA normalises in one pass, rotates in a second and puts heads in groups in a
third. Only the pass costs: what is computed on the way is nothing beside it.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from wan_tpu.attention.sequence_parallel import head_groups
from wan_tpu.geometry import ceil_to_multiple
from wan_tpu.sharding.layout import TP, Layout
from wan_tpu.sharding.rules import FEATURES, GROUPED_HEADS, POSITIONS, SPLIT_FEATURES

BLOCK_TOKENS = 256
"""Tokens of a block: 2.5 MiB of 5,120 channels in bfloat16, in and out twice each, fit in VMEM."""


def norm_rotate(
    x: Float[Array, "batch tokens channels"],
    weight: Float[Array, " channels"],
    cos: Float32[Array, "tokens head_dim"],
    sin: Float32[Array, "tokens head_dim"],
    *,
    dim: int,
    eps: float,
    mesh: jax.sharding.Mesh,
    layout: Layout,
) -> Float[Array, "groups batch tokens group_channels"]:
    """Normalises tokens over all their heads, rotates each head, puts the heads in groups.

    The same as `rms_norm_across_heads`, rounding, `rotate` and `group_heads`; global view.

    Args:
        x: [batch, tokens, padded heads * head_dim], split like queries; padding heads are zero.
        weight: [padded heads * head_dim].
        cos: [tokens, head_dim], float32.
        sin: likewise, signed (`rotary.rotary_tables`).
        dim: channels of the real heads: the mean is over these.
        eps: added to the mean square.
        mesh: decides the platform; elsewhere than on a TPU the kernel is interpreted.
        layout: decides the groups.

    Returns:
        [groups, batch, tokens, heads of a group * head_dim], in x's dtype.
    """

    def per_device(
        x: Float[Array, "batch tokens channels"],
        weight: Float[Array, " channels"],
        cos: Float32[Array, "tokens head_dim"],
        sin: Float32[Array, "tokens head_dim"],
    ) -> Float[Array, "groups batch tokens group_channels"]:
        squares = jnp.square(x.astype(jnp.float32)).sum(-1, keepdims=True)  # [batch, tokens, 1]
        mean_square = jax.lax.psum(squares, TP) / dim
        return _norm_rotate(
            x,
            jax.lax.rsqrt(mean_square + eps),
            weight.astype(jnp.float32)[None],
            cos,
            sin,
            groups=head_groups(layout),
            interpret=mesh.devices.flat[0].platform != "tpu",
        )

    return jax.shard_map(
        per_device,
        mesh=mesh,
        in_specs=(SPLIT_FEATURES, FEATURES, POSITIONS, POSITIONS),
        out_specs=GROUPED_HEADS,
        check_vma=False,
    )(x, weight, cos, sin)


def _norm_rotate(
    x: Float[Array, "batch tokens channels"],
    scale: Float32[Array, "batch tokens 1"],
    weight: Float32[Array, "1 channels"],
    cos: Float32[Array, "tokens head_dim"],
    sin: Float32[Array, "tokens head_dim"],
    *,
    groups: int,
    interpret: bool,
) -> Float[Array, "{groups} batch tokens group_channels"]:
    """Per device: x [batch, tokens, channels], scale [batch, tokens, 1], weight [1, channels]."""
    batch, tokens, channels = x.shape
    head_dim = cos.shape[1]
    rows = min(BLOCK_TOKENS, ceil_to_multiple(tokens, 16))
    per_token = functools.partial(pl.BlockSpec, index_map=lambda b, t: (b, t, 0))
    table = pl.BlockSpec((rows, head_dim), lambda b, t: (t, 0))
    return pl.pallas_call(
        _kernel,
        grid=(batch, pl.cdiv(tokens, rows)),
        in_specs=[
            per_token((None, rows, channels)),
            per_token((None, rows, 1)),
            pl.BlockSpec((1, channels), lambda b, t: (0, 0)),
            table,
            table,
        ],
        out_specs=pl.BlockSpec((groups, None, rows, channels // groups), lambda b, t: (0, b, t, 0)),
        out_shape=jax.ShapeDtypeStruct((groups, batch, tokens, channels // groups), x.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="norm_rotate",
    )(x, scale, weight, cos, sin)


def _kernel(x_ref, scale_ref, weight_ref, cos_ref, sin_ref, out_ref):
    """Per block: x [rows, channels] -> out [groups, rows, channels of a group]."""
    head_dim = cos_ref.shape[1]
    groups, _, channels = out_ref.shape
    for group in range(groups):
        for start in range(0, channels, head_dim):
            head = pl.ds(group * channels + start, head_dim)
            x = x_ref[:, head].astype(jnp.float32) * scale_ref[...] * weight_ref[:, head]
            x = x.astype(x_ref.dtype).astype(jnp.float32)  # diffusers rounds here too
            swapped = pltpu.roll(x, head_dim // 2, 1)
            rotated = x * cos_ref[...] + swapped * sin_ref[...]
            out_ref[group, :, pl.ds(start, head_dim)] = rotated.astype(out_ref.dtype)
