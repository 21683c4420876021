"""A kernel for TPU: layer norm, projection, norm over heads, rotation and groups in one pass.

All weights of a projection lie in VMEM, so a block of tokens meets every output channel before it
leaves: the norm over heads needs them all. Tokens are read once and written once.

The product keeps the matrix unit busy, what is before and after it the vector unit. So three blocks
of tokens are on their way: while one is multiplied, the next is normalised, and the one before is
rotated and written. A step of the grid does all three for one stretch of output channels after the
other, and the compiler puts them side by side: within a stretch nothing reads what was just
written. The program around the kernel puts the weights into VMEM, or gathers them there.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Float32, Int32

from wan_tpu.attention.flash_blocks import LANES
from wan_tpu.geometry import ceil_to_multiple
from wan_tpu.transformer.norms import STRIP_TOKENS, normalised_rows

KERNEL_NAME = "projection"
"""Programs call it so."""

BLOCK_TOKENS = (512, 384, 256)
"""Tokens of a block, the first number that fits: the matrix unit takes the weights once a block."""

STRETCH = 512
"""Most output channels of one product; whole heads."""

Index = int | Int32[Array, ""]


class Layer(NamedTuple):
    """Scale and shift after the layer norm, `[samples, 1 or 2, dim]`, float32 (`norms.Norm`).

    Attributes:
        scale: what normalised tokens are multiplied by.
        shift: what is added.
        first: `[1]`, tokens of the first of two rows, of those that this device holds.
    """

    scale: Any
    shift: Any
    first: Any


class Heads(NamedTuple):
    """What is done to the output channels of each head.

    Attributes:
        weight: of the norm over all heads; `[heads * head_dim]`, float32.
        tables: cosines and signed sines of the rotation, `[tokens, head_dim]` each, float32; None
            for none.
    """

    weight: Any
    tables: tuple[Any, Any] | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is no array of a projection.

    Attributes:
        head_dim: output channels of a head.
        real_channels: of the heads that are no padding: the norm's mean is over these.
        groups: that the heads are written in.
        eps: added to the layer norm's variance.
        head_eps: added to the heads' mean square.
        block: tokens worked on at a time.
        vmem_bytes: what the kernel may take.
    """

    head_dim: int
    real_channels: int
    groups: int
    eps: float
    head_eps: float
    block: int
    vmem_bytes: int


def fitting_block(tokens: int, dim: int, channels: int, itemsize: int, vmem_bytes: int) -> int:
    """Tokens of a block beside whole weights in a chip's VMEM; 0 where they do not fit.

    Args:
        tokens: of a batch item on a device.
        dim: input channels.
        channels: output channels.
        itemsize: bytes of a number.
        vmem_bytes: what the kernel may take.
    """
    for most in BLOCK_TOKENS:
        block = min(most, ceil_to_multiple(tokens, STRIP_TOKENS))
        # Tokens as they come, normalised, multiplied and as they leave, two blocks each; tables,
        # and sums of squares.
        numbers = (channels * dim + 4 * block * (dim + channels)) * itemsize
        if numbers + 8 * block * LANES * 4 <= vmem_bytes:
            return block
    return 0


def project_tokens(
    x: Float[Array, "batch tokens dim"],
    layer: Layer | None,
    weight: Float[Array, "channels dim"],
    bias: Float[Array, " channels"],
    heads: Heads | None,
    *,
    sizes: Sizes,
    interpret: bool,
) -> Float[Array, "groups batch tokens group_channels"]:
    """The kernel, on what one device holds.

    Args:
        x: `[batch, tokens, dim]`.
        layer: None for no layer norm.
        weight: `[channels, dim]`.
        bias: `[channels]`.
        heads: None for no norm over heads.
        sizes: of everything else.
        interpret: run it in Pallas' interpreter, on any platform.

    Returns:
        `[groups, batch, tokens, heads of a group * head_dim]`, in `x`'s dtype.
    """
    (batch, tokens, dim), channels = x.shape, weight.shape[0]
    groups, block, head_dim = sizes.groups, sizes.block, sizes.head_dim
    if not interpret:
        weight = pltpu.with_memory_space_constraint(weight, pltpu.VMEM)
    stretch = head_dim * _largest_divisor(channels // head_dim, max(STRETCH // head_dim, 1))
    blocks = pl.cdiv(tokens, block)

    def whole(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda b, t: (0,) * len(shape))

    def coming(b: Index, t: Index) -> tuple[Index, ...]:
        return (b, jnp.minimum(t, blocks - 1), 0)

    def leaving(t: Index) -> Index:
        return jnp.maximum(t - 2, 0)

    table = pl.BlockSpec((block, head_dim), lambda b, t: (leaving(t), 0))
    layer_specs, heads_specs = None, None
    if layer is not None:
        samples, num_rows, _ = layer.scale.shape
        rows = pl.BlockSpec((None, num_rows, dim), lambda b, t: (b if samples > 1 else 0, 0, 0))
        layer_specs = Layer(rows, rows, pl.BlockSpec(memory_space=pltpu.SMEM))
    if heads is not None:
        tables = None if heads.tables is None else (table, table)
        heads_specs = Heads(whole(channels // head_dim, head_dim), tables)
        heads = heads._replace(weight=heads.weight.reshape(-1, head_dim))
    return pl.pallas_call(
        functools.partial(_kernel, sizes=sizes),
        grid=(batch, blocks + 2),
        in_specs=[
            pl.BlockSpec((None, block, dim), coming),
            layer_specs,
            pl.BlockSpec(memory_space=pltpu.VMEM),
            whole(channels // stretch, stretch),
            heads_specs,
        ],
        out_specs=pl.BlockSpec(
            (groups, None, block, channels // groups), lambda b, t: (0, b, leaving(t), 0)
        ),
        out_shape=jax.ShapeDtypeStruct((groups, batch, tokens, channels // groups), x.dtype),
        scratch_shapes={
            "normed": pltpu.VMEM((2, block, dim), x.dtype),
            "projected": pltpu.VMEM((2, channels // stretch, block, stretch), x.dtype),
            "squares": pltpu.VMEM((2, block, head_dim), jnp.float32),
        },
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary", "arbitrary"),
            vmem_limit_bytes=sizes.vmem_bytes - weight.size * x.dtype.itemsize,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * batch * tokens * dim * channels,
            transcendentals=batch * tokens,
            bytes_accessed=x.dtype.itemsize * (batch * tokens * (dim + channels) + weight.size),
        ),
        interpret=interpret,
        name=KERNEL_NAME,
    )(x, layer, weight, bias.astype(jnp.float32).reshape(-1, stretch), heads)


def _aligned(start: Index, size: int, multiple: int) -> pl.Slice:
    """A slice that starts at a multiple."""
    return pl.Slice(pl.multiple_of(start, multiple), size)  # type: ignore[arg-type]


def _largest_divisor(number: int, limit: int) -> int:
    return max(size for size in range(1, limit + 1) if number % size == 0)


def _kernel(
    x_ref: Any,
    layer: Layer | None,
    weight_ref: Any,
    bias_ref: Any,
    heads: Heads | None,
    out_ref: Any,
    *,
    sizes: Sizes,
    **scratch: Any,
) -> None:
    """One step: block t of the tokens is normalised, t - 1 multiplied, t - 2 rotated and written.

    Args:
        x_ref: [tokens, dim], of block t.
        layer: scale and shift of the sample.
        weight_ref: [channels, dim].
        bias_ref: [stretches, channels of a stretch].
        heads: the norm's weight [heads, head_dim], tables of block t - 2.
        out_ref: [groups, tokens, channels of a group], of block t - 2.
        sizes: of everything else.
        scratch: fields of `_Step`.
    """
    t = pl.program_id(1)
    step = _Step(
        x=x_ref,
        layer=layer,
        weights=weight_ref,
        bias=bias_ref,
        heads=heads,
        out=out_ref,
        sizes=sizes,
        t=t,
        **scratch,
    )

    @pl.when(t == 0)
    def _() -> None:
        pl.loop(0, sizes.block // STRIP_TOKENS)(
            lambda index: step.normalise(index * STRIP_TOKENS, STRIP_TOKENS)
        )

    @pl.when((t > 0) & (t < pl.num_programs(1) - 1))
    def _() -> None:
        scale = step.head_scale()
        step.squares[1 - t % 2] = jnp.zeros_like(step.squares[0])

        @pl.loop(0, step.stretches)
        def _(index: Index) -> None:
            step.write(index, scale)
            step.multiply(index)
            step.normalise_part(index)

    @pl.when(t == pl.num_programs(1) - 1)
    def _() -> None:
        scale = step.head_scale()
        pl.loop(0, step.stretches)(lambda index: step.write(index, scale))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """A step of the grid; of two halves of a buffer, t % 2 is that of blocks t and t - 2.

    Attributes:
        x: [tokens, dim].
        layer: scale and shift of the sample.
        bias: [stretches, channels of a stretch].
        heads: the norm's weight [heads, head_dim], tables [tokens, head_dim].
        out: [groups, tokens, channels of a group].
        sizes: of everything else.
        t: number of the step.
        weights: [channels, dim].
        normed: [2, tokens, dim].
        projected: [2, stretches, tokens, channels of a stretch].
        squares: [2, tokens, head_dim], float32: sums over heads.
    """

    x: Any
    layer: Layer | None
    bias: Any
    heads: Heads | None
    out: Any
    sizes: Sizes
    t: Index
    weights: Any
    normed: Any
    projected: Any
    squares: Any

    @property
    def stretches(self) -> int:
        """How many."""
        return self.bias.shape[0]

    @property
    def stretch(self) -> int:
        """Output channels."""
        return self.bias.shape[1]

    def normalise(self, start: Index, count: int) -> None:
        """Takes some tokens of block t into `normed`."""
        rows = _aligned(start, count, STRIP_TOKENS)
        x = self.x[rows, :]
        if self.layer is not None:
            left = self.layer.first[0] - self.t * self.sizes.block - start
            x = normalised_rows(
                x, self.layer.scale[...], self.layer.shift[...], eps=self.sizes.eps, left=left
            )
        self.normed[self.t % 2, rows, :] = x

    def normalise_part(self, index: Index) -> None:
        """A stretch's share of block t; the last ones take some tokens once more."""
        block = self.sizes.block
        count = ceil_to_multiple(math.ceil(block / self.stretches), STRIP_TOKENS)
        self.normalise(jnp.minimum(index * count, block - count), count)

    def multiply(self, index: Index) -> None:
        """A stretch of block t - 1's output channels, in the inputs' dtype."""
        half = 1 - self.t % 2
        part = _aligned(index * self.stretch, self.stretch, self.stretch)
        normed, weights = self.normed[half], self.weights[part, :]
        precision = jax.lax.Precision.HIGHEST if normed.dtype == jnp.float32 else None
        product = jax.lax.dot_general(
            normed,
            weights,
            (((1,), (1,)), ((), ())),
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        product = (product + self.bias[pl.ds(index, 1), :]).astype(normed.dtype)
        self.projected[half, index] = product
        if self.heads is not None:
            squares = (jnp.square(x.astype(jnp.float32)) for x in self._heads_of(product))
            self.squares[half] += functools.reduce(jnp.add, squares)

    def head_scale(self) -> Float32[Array, "tokens 1"] | None:
        """One over the root of each of block t - 2's tokens' mean square; None without a norm."""
        if self.heads is None:
            return None
        squares = self.squares[self.t % 2].sum(-1, keepdims=True)
        return jax.lax.rsqrt(squares / self.sizes.real_channels + self.sizes.head_eps)

    def write(self, index: Index, scale: Float32[Array, "tokens 1"] | None) -> None:
        """A stretch of block t - 2, normalised and rotated, each head into its group."""
        heads = self._heads_of(self.projected[self.t % 2, index])
        head_dim = self.sizes.head_dim
        of_group = self.out.shape[2] // head_dim
        for number, x in enumerate(heads):
            head = index * len(heads) + number
            columns = _aligned(head % of_group * head_dim, head_dim, head_dim)
            self.out[head // of_group, :, columns] = self._rotated(head, x, scale)

    def _rotated(
        self,
        head: Index,
        x: Float[Array, "tokens head_dim"],
        scale: Float32[Array, "tokens 1"] | None,
    ) -> Float[Array, "tokens head_dim"]:
        if self.heads is None or scale is None:
            return x
        normed = x.astype(jnp.float32) * scale * self.heads.weight[pl.ds(head, 1), :]
        normed = normed.astype(x.dtype)  # diffusers rounds here too
        if self.heads.tables is None:
            return normed
        cos, sin = self.heads.tables
        normed = normed.astype(jnp.float32)
        swapped = pltpu.roll(normed, self.sizes.head_dim // 2, 1)
        return (normed * cos[...] + swapped * sin[...]).astype(x.dtype)

    def _heads_of(self, x: Float[Array, "tokens stretch"]) -> list[Float[Array, "tokens head_dim"]]:
        head_dim = self.sizes.head_dim
        return [x[:, start : start + head_dim] for start in range(0, x.shape[1], head_dim)]
