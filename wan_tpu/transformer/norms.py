"""Norms of tokens: layer norm with what modulates it, and a kernel for TPU; over all heads.

XLA makes mean and variance in two passes over the tokens, and normalises in every product that
reads them. A token's 5,120 channels fit in a TPU's registers: the kernel takes its mean, then the
squares about that mean, without a second look at memory.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int32

from wan_tpu.geometry import ceil_to_multiple
from wan_tpu.sharding.layout import SP
from wan_tpu.sharding.rules import WHOLE_FEATURES, vectors_of

BLOCK_TOKENS = 256
"""Tokens of a block: 2.5 MiB of 5,120 channels in bfloat16, in and out twice each, fit in VMEM."""

STRIP_TOKENS = 16
"""Tokens normalised at a time: whole registers of 16-bit numbers."""

Tokens = Float[Array, "batch tokens dim"]

Vectors = Float32[Array, "samples rows dim"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A layer norm over a token's channels, and what its result is multiplied by and added to.

    Attributes:
        scale: `[samples, rows, dim]`, float32; one sample stands for all. One row is for all
            tokens; of two the first is for the first tokens.
        shift: likewise.
        eps: added to the variance.
        first_tokens: tokens of the first of two rows.
    """

    scale: Vectors
    shift: Vectors
    eps: float
    first_tokens: int = 0


def layer_norm(x: Tokens, norm: Norm) -> Tokens:
    """Normalises each token, in float32, in steps that XLA puts where they are used.

    The same as diffusers' `FP32LayerNorm` and a modulation after it.

    Args:
        x: `[batch, tokens, dim]`.
        norm: what to normalise by.

    Returns:
        Like `x`, in its dtype.
    """
    scale, shift = norm.scale, norm.shift
    if scale.shape[1] == 2:
        is_first = jax.lax.iota(jnp.int32, x.shape[1])[:, None] < norm.first_tokens
        scale, shift = (jnp.where(is_first, rows[:, :1], rows[:, 1:]) for rows in (scale, shift))
    return _normalised(x, norm.eps, scale, shift)


def normalised_rows(
    x: Float[Array, "rows dim"],
    scale: Float32[Array, "samples_rows dim"],
    shift: Float32[Array, "samples_rows dim"],
    *,
    eps: float,
    left: Int32[Array, ""],
) -> Float[Array, "rows dim"]:
    """Inside a kernel: some tokens, one after the other, normalised like `layer_norm`'s.

    Args:
        x: `[rows, dim]`.
        scale: `[1 or 2, dim]`, float32.
        shift: likewise.
        eps: added to the variance.
        left: how many of the rows, or more, are of the first of two rows of `scale`.
    """
    if scale.shape[0] == 2:
        is_first = jax.lax.broadcasted_iota(jnp.int32, (x.shape[0], 1), 0) < left
        scale, shift = (jnp.where(is_first, rows[:1], rows[1:]) for rows in (scale, shift))
    return _normalised(x, eps, scale, shift)


def _normalised(x: Array, eps: float, scale: Array, shift: Array) -> Array:
    """Over the last dimension: the variance about the mean itself, which no large mean spoils."""
    centred = x.astype(jnp.float32)
    centred = centred - centred.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + eps) * scale + shift).astype(x.dtype)


def layer_norm_in_one_pass(x: Tokens, norm: Norm, *, mesh: jax.sharding.Mesh) -> Tokens:
    """`layer_norm` by the kernel; global view. Its gradient is that of `layer_norm`.

    Args:
        x: `[batch, tokens, dim]`, dp splits the batch and sp the tokens.
        norm: what to normalise by.
        mesh: decides the platform; elsewhere than on a TPU the kernel is interpreted.
    """
    where = _Where(eps=norm.eps, first_tokens=norm.first_tokens, mesh=mesh)
    return _in_one_pass(x, norm.scale, norm.shift, where)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Where:
    """What is no array of a call; hashable, as `jax.custom_vjp` asks."""

    eps: float
    first_tokens: int
    mesh: jax.sharding.Mesh

    def in_steps(self, x: Tokens, scale: Vectors, shift: Vectors) -> Tokens:
        """`layer_norm` of these arrays."""
        norm = Norm(scale=scale, shift=shift, eps=self.eps, first_tokens=self.first_tokens)
        return layer_norm(x, norm)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _in_one_pass(x: Tokens, scale: Vectors, shift: Vectors, where: _Where) -> Tokens:
    interpret = where.mesh.devices.flat[0].platform != "tpu"

    def per_device(x: Tokens, scale: Vectors, shift: Vectors) -> Tokens:
        first = first_of_shard(where.first_tokens, x.shape[1])
        return _layer_norm(x, scale, shift, first, eps=where.eps, interpret=interpret)

    vectors = vectors_of(scale.shape[0])
    return jax.shard_map(
        per_device,
        mesh=where.mesh,
        in_specs=(WHOLE_FEATURES, vectors, vectors),
        out_specs=WHOLE_FEATURES,
        check_vma=False,
    )(x, scale, shift)


def _forward(
    x: Tokens, scale: Vectors, shift: Vectors, where: _Where
) -> tuple[Tokens, Callable[..., tuple[Array, ...]]]:
    return jax.vjp(where.in_steps, x, scale, shift)


def _backward(
    _where: _Where, backward: Callable[..., tuple[Array, ...]], d_out: Tokens
) -> tuple[Array, ...]:
    return backward(d_out)


_in_one_pass.defvjp(_forward, _backward)


def first_of_shard(first_tokens: int, tokens: int) -> Int32[Array, " 1"]:
    """Per device: of `tokens` that it holds, where the first row's end; below 0 it has none."""
    return jnp.asarray([first_tokens]) - jax.lax.axis_index(SP) * tokens


def _layer_norm(
    x: Tokens,
    scale: Vectors,
    shift: Vectors,
    first: Int32[Array, " 1"],
    *,
    eps: float,
    interpret: bool,
) -> Tokens:
    """Per device."""
    batch, tokens, dim = x.shape
    samples, num_rows, _ = scale.shape
    rows = min(BLOCK_TOKENS, ceil_to_multiple(tokens, STRIP_TOKENS))
    block = pl.BlockSpec((None, rows, dim), lambda b, t: (b, t, 0))
    vectors = pl.BlockSpec((None, num_rows, dim), lambda b, t: (b if samples > 1 else 0, 0, 0))
    return pl.pallas_call(
        functools.partial(_kernel, eps=eps),
        grid=(batch, pl.cdiv(tokens, rows)),
        in_specs=[pl.BlockSpec(memory_space=pltpu.SMEM), block, vectors, vectors],
        out_specs=block,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        interpret=interpret,
        name="layer_norm",
    )(first, x, scale, shift)


def _kernel(first_ref, x_ref, scale_ref, shift_ref, out_ref, *, eps: float):
    """Per block: x [rows, dim], scale and shift [1 or 2, dim] -> out [rows, dim]."""
    rows = x_ref.shape[0]
    left = first_ref[0] - pl.program_id(1) * rows

    @pl.loop(0, rows // STRIP_TOKENS)
    def _(index):
        start = pl.multiple_of(index * STRIP_TOKENS, STRIP_TOKENS)
        strip = pl.ds(start, STRIP_TOKENS)
        out_ref[strip, :] = normalised_rows(
            x_ref[strip, :], scale_ref[...], shift_ref[...], eps=eps, left=left - start
        )


def rms_norm_across_heads(
    x: Float[Array, "batch tokens channels"],
    weight: Float[Array, " channels"],
    dim: int,
    eps: float,
) -> Float32[Array, "batch tokens channels"]:
    """Root-mean-square norm over all heads of a token.

    Args:
        x: `[batch, tokens, padded heads * head_dim]`; padding heads are zero.
        weight: `[padded heads * head_dim]`.
        dim: channels of the real heads: the mean is over these.
        eps: added to the mean square.

    Returns:
        Like `x`, float32 (the caller rounds once, after all that follows).
    """
    x = x.astype(jnp.float32)
    mean_square = jnp.sum(x * x, axis=-1, keepdims=True) / dim
    return x * jax.lax.rsqrt(mean_square + eps) * weight.astype(jnp.float32)
