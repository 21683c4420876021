"""Norm, rotation and grouping of queries and keys in one pass over memory: a kernel for TPU.

As separate operations XLA normalises in one pass, rotates in a second and puts heads in groups in a
third. Only the pass costs: what is computed on the way is nothing beside it.

The gradient is written out, as two more kernels: a roll has no derivative rule. One makes the sum
over a token's channels that the norm's gradient needs, and that tp adds up; one makes the rest. It
is a `shard_map` of its own with its own sums over the mesh: nothing relies on what the transpose of
a `psum` is.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32

from wan_tpu.attention.flash_blocks import SUBLANES
from wan_tpu.geometry import ceil_to_multiple
from wan_tpu.sharding.layout import DP, SP, TP, Layout
from wan_tpu.sharding.rules import (
    FEATURES,
    GROUPED_HEADS,
    POSITIONS,
    SPLIT_FEATURES,
    WHOLE_FEATURES,
)

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
    Differentiable in x and the weight, as if nothing were rounded on the way.

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

    where = _Where(dim=dim, eps=eps, mesh=mesh, layout=layout)
    return _differentiable(x, weight, cos, sin, where)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Where:
    """What is no array of a call; hashable, as `jax.custom_vjp` asks."""

    dim: int
    eps: float
    mesh: jax.sharding.Mesh
    layout: Layout

    @property
    def interpret(self) -> bool:
        return self.mesh.devices.flat[0].platform != "tpu"


Scale = Float32[Array, "batch tokens 1"]
"""One over the root of each token's mean square."""

_Residuals = tuple[
    Float[Array, "batch tokens channels"],
    Float[Array, " channels"],
    Float32[Array, "tokens head_dim"],
    Float32[Array, "tokens head_dim"],
    Scale,
]
"""x, weight, cos, sin and the scale."""


def _with_scale(
    x: Float[Array, "batch tokens channels"],
    weight: Float[Array, " channels"],
    cos: Float32[Array, "tokens head_dim"],
    sin: Float32[Array, "tokens head_dim"],
    where: _Where,
) -> tuple[Float[Array, "groups batch tokens group_channels"], Scale]:
    """The result, and each token's scale; global view."""

    def per_device(
        x: Float[Array, "batch tokens channels"],
        weight: Float[Array, " channels"],
        cos: Float32[Array, "tokens head_dim"],
        sin: Float32[Array, "tokens head_dim"],
    ) -> tuple[Float[Array, "groups batch tokens group_channels"], Scale]:
        squares = jnp.square(x.astype(jnp.float32)).sum(-1, keepdims=True)  # [batch, tokens, 1]
        mean_square = jax.lax.psum(squares, TP) / where.dim
        scale = jax.lax.rsqrt(mean_square + where.eps)
        rotated = _norm_rotate(
            x,
            scale,
            weight.astype(jnp.float32)[None],
            cos,
            sin,
            groups=where.layout.head_groups,
            interpret=where.interpret,
        )
        return rotated, scale

    return jax.shard_map(
        per_device,
        mesh=where.mesh,
        in_specs=(SPLIT_FEATURES, FEATURES, POSITIONS, POSITIONS),
        out_specs=(GROUPED_HEADS, WHOLE_FEATURES),
        check_vma=False,
    )(x, weight, cos, sin)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _differentiable(
    x: Float[Array, "batch tokens channels"],
    weight: Float[Array, " channels"],
    cos: Float32[Array, "tokens head_dim"],
    sin: Float32[Array, "tokens head_dim"],
    where: _Where,
) -> Float[Array, "groups batch tokens group_channels"]:
    return _with_scale(x, weight, cos, sin, where)[0]


def _forward(
    x: Float[Array, "batch tokens channels"],
    weight: Float[Array, " channels"],
    cos: Float32[Array, "tokens head_dim"],
    sin: Float32[Array, "tokens head_dim"],
    where: _Where,
) -> tuple[Float[Array, "groups batch tokens group_channels"], _Residuals]:
    rotated, scale = _with_scale(x, weight, cos, sin, where)
    return rotated, (x, weight, cos, sin, scale)


def _backward(
    where: _Where,
    kept: _Residuals,
    d_out: Float[Array, "groups batch tokens group_channels"],
) -> tuple[Float[Array, "batch tokens channels"], Float[Array, " channels"], None, None]:
    """Gradients of x and the weight; the tables are constants. Global view."""

    def per_device(
        x: Float[Array, "batch tokens channels"],
        weight: Float[Array, " channels"],
        cos: Float32[Array, "tokens head_dim"],
        sin: Float32[Array, "tokens head_dim"],
        scale: Scale,
        d_out: Float[Array, "groups batch tokens group_channels"],
    ) -> tuple[Float[Array, "batch tokens channels"], Float[Array, " channels"]]:
        arrays = x, scale, weight.astype(jnp.float32)[None], cos, sin, d_out
        products = _product_sums(*arrays, interpret=where.interpret)
        mean_product = jax.lax.psum(products, TP) / where.dim
        d_x, d_weight = _gradients(*arrays, mean_product, interpret=where.interpret)
        return d_x, jax.lax.psum(d_weight, (DP, SP)).astype(weight.dtype)

    d_x, d_weight = jax.shard_map(
        per_device,
        mesh=where.mesh,
        in_specs=(SPLIT_FEATURES, FEATURES, POSITIONS, POSITIONS, WHOLE_FEATURES, GROUPED_HEADS),
        out_specs=(SPLIT_FEATURES, FEATURES),
        check_vma=False,
    )(*kept, d_out)
    return d_x, d_weight, None, None


_differentiable.defvjp(_forward, _backward)


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
    table = pl.BlockSpec((rows, head_dim), lambda b, t: (t, 0))
    return pl.pallas_call(
        _kernel,
        grid=(batch, pl.cdiv(tokens, rows)),
        in_specs=[
            _per_token(rows, channels),
            _per_token(rows, 1),
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


def _product_sums(
    x: Float[Array, "batch tokens channels"],
    scale: Scale,
    weight: Float32[Array, "1 channels"],
    cos: Float32[Array, "tokens head_dim"],
    sin: Float32[Array, "tokens head_dim"],
    d_out: Float[Array, "groups batch tokens group_channels"],
    *,
    interpret: bool,
) -> Scale:
    """Per device: each token's sum of its normalised channels times their gradients."""
    batch, tokens, _ = x.shape
    rows = min(BLOCK_TOKENS, ceil_to_multiple(tokens, 16))
    return pl.pallas_call(
        _product_sums_kernel,
        grid=(batch, pl.cdiv(tokens, rows)),
        in_specs=_backward_specs(rows, x, cos, d_out),
        out_specs=_per_token(rows, 1),
        out_shape=jax.ShapeDtypeStruct((batch, tokens, 1), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="norm_rotate_product_sums",
    )(x, scale, weight, cos, sin, d_out)


def _gradients(
    x: Float[Array, "batch tokens channels"],
    scale: Scale,
    weight: Float32[Array, "1 channels"],
    cos: Float32[Array, "tokens head_dim"],
    sin: Float32[Array, "tokens head_dim"],
    d_out: Float[Array, "groups batch tokens group_channels"],
    mean_product: Scale,
    *,
    interpret: bool,
) -> tuple[Float[Array, "batch tokens channels"], Float32[Array, " channels"]]:
    """Per device: gradients of x, and of the weight from the device's own tokens."""
    batch, tokens, channels = x.shape
    rows = min(BLOCK_TOKENS, ceil_to_multiple(tokens, 16))
    d_x, d_weight = pl.pallas_call(
        functools.partial(_gradients_kernel, tokens=tokens),
        grid=(batch, pl.cdiv(tokens, rows)),
        in_specs=[*_backward_specs(rows, x, cos, d_out), _per_token(rows, 1)],
        out_specs=[
            _per_token(rows, channels),
            pl.BlockSpec((SUBLANES, channels), lambda b, t: (0, 0)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct(x.shape, x.dtype),
            jax.ShapeDtypeStruct((SUBLANES, channels), jnp.float32),
        ],
        # One after the other: every block adds to the weight's gradient.
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary")),
        interpret=interpret,
        name="norm_rotate_gradients",
    )(x, scale, weight, cos, sin, d_out, mean_product)
    return d_x, d_weight.sum(0)


def _per_token(rows: int, channels: int) -> pl.BlockSpec:
    """Blocks of an array [batch, tokens, channels]."""
    return pl.BlockSpec((None, rows, channels), lambda b, t: (b, t, 0))


def _backward_specs(rows: int, x: Array, cos: Array, d_out: Array) -> list[pl.BlockSpec]:
    """Blocks of x, scale, weight, cos, sin and the gradient of the result."""
    channels, head_dim = x.shape[2], cos.shape[1]
    groups, _, _, group_channels = d_out.shape
    table = pl.BlockSpec((rows, head_dim), lambda b, t: (t, 0))
    return [
        _per_token(rows, channels),
        _per_token(rows, 1),
        pl.BlockSpec((1, channels), lambda b, t: (0, 0)),
        table,
        table,
        pl.BlockSpec((groups, None, rows, group_channels), lambda b, t: (0, b, t, 0)),
    ]


def _heads(
    x_ref, scale_ref, cos_ref, sin_ref, d_out_ref
) -> Iterator[
    tuple[slice | pl.Slice, Float32[Array, "rows head_dim"], Float32[Array, "rows head_dim"]]
]:
    """Of each head its channels, x times the scale, and the gradient of that times the weight."""
    head_dim = cos_ref.shape[1]
    groups, _, channels = d_out_ref.shape
    for group in range(groups):
        for start in range(0, channels, head_dim):
            head = pl.ds(group * channels + start, head_dim)
            d_out = d_out_ref[group, :, pl.ds(start, head_dim)].astype(jnp.float32)
            # Half a head's roll is its own inverse.
            turned = pltpu.roll(d_out * sin_ref[...], head_dim // 2, 1)
            normed = x_ref[:, head].astype(jnp.float32) * scale_ref[...]
            yield head, normed, d_out * cos_ref[...] + turned


def _product_sums_kernel(x_ref, scale_ref, weight_ref, cos_ref, sin_ref, d_out_ref, sums_ref):
    """Per block: x [rows, channels], d_out [groups, rows, channels of a group] -> [rows, 1]."""
    products = jnp.zeros((x_ref.shape[0], cos_ref.shape[1]), jnp.float32)
    for head, normed, gradient in _heads(x_ref, scale_ref, cos_ref, sin_ref, d_out_ref):
        products += normed * gradient * weight_ref[:, head]
    sums_ref[...] = products.sum(-1, keepdims=True)


def _gradients_kernel(
    x_ref, scale_ref, weight_ref, cos_ref, sin_ref, d_out_ref, mean_product_ref,
    d_x_ref, d_weight_ref, *, tokens: int,
):  # fmt: skip
    """Per block: like `_product_sums_kernel` -> d_x [rows, channels], d_weight [8, channels]."""
    rows = x_ref.shape[0]
    left = tokens - pl.program_id(1) * rows
    inside = jax.lax.broadcasted_iota(jnp.int32, (rows, 1), 0) < left

    @pl.when((pl.program_id(0) == 0) & (pl.program_id(1) == 0))
    def _start():
        d_weight_ref[...] = jnp.zeros_like(d_weight_ref)

    for head, normed, gradient in _heads(x_ref, scale_ref, cos_ref, sin_ref, d_out_ref):
        of_weight = jnp.where(inside, normed * gradient, 0)
        d_weight_ref[:, head] += of_weight.reshape(-1, SUBLANES, of_weight.shape[1]).sum(0)
        d_normed = gradient * weight_ref[:, head] - normed * mean_product_ref[...]
        d_x_ref[:, head] = (d_normed * scale_ref[...]).astype(d_x_ref.dtype)
