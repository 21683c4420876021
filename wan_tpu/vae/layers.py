"""The autoencoder's layers as modules, each on one video's part on one device.

Arrays are `[frames, height, width, channels]`. Time is causal: a convolution sees two frames back,
and what it saw last, its *past*, goes from chunk to chunk. A module takes its past and returns the
next one; `None` stands for the start of a video, before which there is nothing (diffusers' empty
`feat_cache`).

Equal residual blocks are one scanned convolution for the compiler's sake: it takes seconds for each
convolution that it sees (docs/decisions/0002-own-flax-vae.md).
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int, PyTree

from wan_tpu.vae.convolution import CHANNELS, CONVOLUTIONS, Kernel, Picture
from wan_tpu.vae.plan import FrameAttention, Layer, Resampling, ResidualBlocks, ResidualLevel
from wan_tpu.vae.rearrange import average_down, repeat_up
from wan_tpu.vae.spatial import SpatialSplit

Past = PyTree[Float[Array, "..."]]
"""Frames seen before, a tree of `[*stack, frames, height, width, channels]`; None at the start of a
video, and where a module needs none."""

Carry = tuple[Picture, Float[Array, "blocks 2 2 height width channels"]]
"""Through a run of equal blocks: the picture, and the past of them all."""

Result = Float[Array, "frames_out height_out width_out out_channels"]


class Convolution(nnx.Module):
    """A convolution over frames, rows and columns.

    Attributes:
        kernel: `[*stack, frames, columns, rows, in_channels, out_channels]`.
        bias: `[*stack, out_channels]`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        split: SpatialSplit,
        rngs: nnx.Rngs,
        frames: int = 1,
        size: int = 1,
        frame_stride: int = 1,
        stride: int = 1,
        stack: tuple[int, ...] = (),
    ):
        shape = (*stack, frames, size, size, in_channels, out_channels)
        # Variance 1 / fan-in; in practice weights come from a checkpoint.
        scale = (frames * size * size * in_channels) ** -0.5
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros((*stack, out_channels)))
        self.frame_stride = frame_stride
        self.stride = stride
        # Down in steps of two, diffusers pads only at the end; else both sides alike.
        self.padding = (0, 1) if stride == 2 else (size // 2, size // 2)
        self.split = split

    def __call__(self, x: Picture) -> Result:
        """Convolves; all frames that the kernel needs are in `x`.

        Args:
            x: `[frames, height, width, in_channels]`.
        """
        return self._apply(x, self.kernel[...])

    def causal(
        self, x: Picture, past: Past
    ) -> tuple[Float[Array, "frames height width out"], Past]:
        """Convolves `x` after its past, for a kernel of three frames.

        Returns:
            as many frames as `x` has, and the next past: the last two frames seen.
        """
        if past is not None:
            joined = jnp.concatenate([past, x])
            return self._apply(joined, self.kernel[...]), joined[-2:]
        joined = jnp.concatenate([jnp.zeros_like(x, shape=(2, *x.shape[1:])), x])
        # The taps that would meet only the zeros before the first frame need no product.
        taps = min(len(x), 3)
        return self._apply(joined[3 - taps :], self.kernel[-taps:]), joined[-2:]

    def _apply(self, x: Picture, kernel: Kernel) -> Result:
        _, columns, rows, _, _ = kernel.shape
        x = self.split.pad_columns(x, *self.padding) if columns > 1 else x
        around = self.padding if rows > 1 else (0, 0)
        if self.split.height_ways > 1:
            x, around = self.split.pad_rows(x, *around), (0, 0)
        convolve = CONVOLUTIONS[self.split.convolution]
        return convolve(x, kernel, self.frame_stride, self.stride, around) + self.bias[...]


class RmsNorm(nnx.Module):
    """Each position's channels at unit root mean square, in float32; diffusers' `WanRMS_norm`."""

    def __init__(self, channels: int, *, stack: tuple[int, ...] = ()):
        self.gamma = nnx.Param(jnp.ones((*stack, channels)))

    def __call__(self, x: Float[Array, "*shape"]) -> Float32[Array, "*shape"]:
        """`[..., channels]`; the result is float32."""
        x = x.astype(jnp.float32)
        squares = jnp.sum(x * x, axis=CHANNELS, keepdims=True)
        scale = x.shape[-1] ** 0.5 * self.gamma[...].astype(jnp.float32)
        return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24)) * scale


class NormConvolution(nnx.Module):
    """Norm, SiLU and a causal 3x3x3 convolution: half a residual block."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        split: SpatialSplit,
        rngs: nnx.Rngs,
        stack: tuple[int, ...] = (),
    ):
        self.norm = RmsNorm(in_channels, stack=stack)
        self.conv = Convolution(
            in_channels, out_channels, frames=3, size=3, split=split, rngs=rngs, stack=stack
        )

    def __call__(self, x: Picture, past: Past) -> tuple[Result, Past]:
        """`[frames, height, width, in_channels]` to `[..., out_channels]`, and the next past."""
        return self.conv.causal(jax.nn.silu(self.norm(x)).astype(x.dtype), past)


class EqualBlocks(nnx.Module):
    """A run of residual blocks whose channels do not change, as a scan over one convolution.

    Attributes:
        stack: `[blocks, 2]`, in front of every array of the halves and of the past.
        halves: the blocks' halves.
    """

    def __init__(self, plan: ResidualBlocks, *, split: SpatialSplit, rngs: nnx.Rngs):
        self.stack = (len(plan.names), 2)
        self.halves = NormConvolution(
            plan.channels, plan.channels, split=split, rngs=rngs, stack=self.stack
        )

    def __call__(self, x: Picture, past: Past) -> tuple[Result, Past]:
        """`[frames, height, width, channels]`; the past is `[blocks, 2, 2 frames, ...]`."""
        graph, weights = nnx.split(self.halves)
        blocks, halves = map(jnp.arange, self.stack)
        # One array goes through both loops and is updated in place: the past and the next one share
        # the donated memory. Taken and returned by the loops they would be two, and slices of both.
        kept = jnp.zeros_like(x, shape=(*self.stack, 2, *x.shape[1:])) if past is None else past

        def block(carry: Carry, inputs: tuple[PyTree, Int[Array, ""]]) -> tuple[Carry, None]:
            weights, number = inputs

            def half(carry: Carry, inputs: tuple[PyTree, Int[Array, ""]]) -> tuple[Carry, None]:
                (x, kept), (weights, place) = carry, inputs
                start = (number, place, 0, 0, 0, 0)
                seen = jax.lax.dynamic_slice(kept, start, (1, 1, *kept.shape[2:]))[0, 0]
                x, seen = nnx.merge(graph, weights)(x, None if past is None else seen)
                return (x, jax.lax.dynamic_update_slice(kept, seen[None, None], start)), None

            (change, kept), _ = jax.lax.scan(half, carry, (weights, halves))
            return (carry[0] + change, kept), None

        return jax.lax.scan(block, (x, kept), (weights, blocks))[0]


class WideningBlock(nnx.Module):
    """A residual block whose channels change: the input joins through a 1x1 convolution."""

    def __init__(self, plan: ResidualBlocks, *, split: SpatialSplit, rngs: nnx.Rngs):
        make = functools.partial(NormConvolution, split=split, rngs=rngs)
        self.first = make(plan.in_channels, plan.channels)
        self.second = make(plan.channels, plan.channels)
        self.shortcut = Convolution(plan.in_channels, plan.channels, split=split, rngs=rngs)

    def __call__(self, x: Picture, past: Past) -> tuple[Result, Past]:
        """`[frames, height, width, in_channels]` to `[..., channels]`."""
        first, second = past or (None, None)
        y, first = _done(self.first(x, first))
        y, second = self.second(y, second)
        return self.shortcut(x) + y, (first, second)


class Attention(nnx.Module):
    """One head of attention over all positions of each frame; diffusers' `WanAttentionBlock`."""

    def __init__(self, plan: FrameAttention, *, split: SpatialSplit, rngs: nnx.Rngs):
        self.norm = RmsNorm(plan.channels)
        self.to_qkv = Convolution(plan.channels, 3 * plan.channels, split=split, rngs=rngs)
        self.proj = Convolution(plan.channels, plan.channels, split=split, rngs=rngs)
        self.split = split

    def __call__(self, x: Picture, past: Past) -> tuple[Result, Past]:
        """`[frames, height, width, channels]` to the same; there is no past."""
        frames, height, width, channels = x.shape
        qkv = self.to_qkv(self.norm(x).astype(x.dtype)).reshape(frames, height * width, 3, channels)
        query = qkv[:, :, 0]  # [frames, positions here, channels]
        # Attention does not mind the order of keys, so the devices' parts come as they are.
        key, value = jnp.moveaxis(self.split.gather(qkv[:, :, 1:], dim=1), 2, 0)
        precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
        product = functools.partial(
            jnp.einsum, precision=precision, preferred_element_type=jnp.float32
        )
        scores = product("fqc,fkc->fqk", query, key) * channels**-0.5
        weights = jax.nn.softmax(scores).astype(x.dtype)
        out = product("fqk,fkc->fqc", weights, value).astype(x.dtype).reshape(x.shape)
        return x + self.proj(out), None


class Upsample(nnx.Module):
    """Doubles height and width, and time after a video's first frame where `temporal`.

    diffusers' `WanResample` in the modes `upsample2d` and `upsample3d`. The convolution over time
    never sees the first frame: its past starts from zeros at the second chunk.
    """

    def __init__(self, plan: Resampling, *, split: SpatialSplit, rngs: nnx.Rngs):
        make = functools.partial(Convolution, split=split, rngs=rngs)
        self.time_conv = (
            make(plan.in_channels, 2 * plan.in_channels, frames=3) if plan.temporal else None
        )
        self.conv = make(plan.in_channels, plan.channels, size=3)

    def __call__(self, x: Picture, past: Past) -> tuple[Result, Past]:
        """`[frames, height, width, in_channels]` to `[new frames, 2 height, 2 width, channels]`."""
        if self.time_conv is not None:
            first = x[:1] if past is None else x[:0]
            past = jnp.zeros_like(x, shape=(2, *x.shape[1:])) if past is None else past
            joined = jnp.concatenate([past, x[len(first) :]])
            x = jnp.concatenate([first, self._double_frames(joined)])
            past = joined[-2:]
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return self.conv(x), past

    def _double_frames(
        self, x: Float[Array, "frames height width channels"]
    ) -> Float[Array, "frames_out height width channels"]:
        """`[2 + frames, height, width, channels]` to `[2 * frames, ...]`."""
        if len(x) == 2:
            return x[:0]
        assert self.time_conv is not None
        x = self.time_conv(x)
        frames, height, width, channels = x.shape
        x = x.reshape(frames, height, width, 2, channels // 2)
        return jnp.moveaxis(x, 3, 1).reshape(2 * frames, height, width, channels // 2)


class Downsample(nnx.Module):
    """Halves height and width, and time after a video's first frame where `temporal`.

    diffusers' `WanResample` in the modes `downsample2d` and `downsample3d`.
    """

    def __init__(self, plan: Resampling, *, split: SpatialSplit, rngs: nnx.Rngs):
        make = functools.partial(
            Convolution, plan.in_channels, plan.channels, split=split, rngs=rngs
        )
        self.conv = make(size=3, stride=2)
        self.time_conv = make(frames=3, frame_stride=2) if plan.temporal else None

    def __call__(self, x: Picture, past: Past) -> tuple[Result, Past]:
        """`[frames, height, width, channels]` to `[new frames, height/2, width/2, channels]`."""
        x = self.conv(x)
        if self.time_conv is None:
            return x, None
        first = x[:1] if past is None else x[:0]
        joined = x if past is None else jnp.concatenate([past, x])
        halved = self.time_conv(joined) if len(joined) > 1 else x[:0]
        return jnp.concatenate([first, halved]), x[-1:]


class Level(nnx.Module):
    """Layers with a shortcut around them; diffusers' `WanResidualDownBlock`, `WanResidualUpBlock`.

    The shortcut has no past: going down it joins frames of the chunk alone, and the start of a
    video, one frame where two are joined, joins with zeros.
    """

    def __init__(self, plan: ResidualLevel, *, split: SpatialSplit, rngs: nnx.Rngs):
        self.layers = nnx.List(make_layers(plan.layers, split=split, rngs=rngs))
        self.plan = plan

    def __call__(self, x: Picture, past: Past) -> tuple[Result, Past]:
        """`[frames, height, width, in_channels]` to the plan's size, frames and channels."""
        plan = self.plan
        y, following = run_layers(self.layers, x, past)
        if plan.up:
            shortcut = repeat_up(x, plan.channels, frames=plan.frames, size=plan.size)
            # A video's first frame stays one frame: the last of those that it would become.
            shortcut = shortcut[plan.frames - 1 :] if past is None else shortcut
        else:
            shortcut = average_down(x, plan.channels, frames=plan.frames, size=plan.size)
        return y + shortcut, following


def make_layers(
    plans: tuple[Layer, ...], *, split: SpatialSplit, rngs: nnx.Rngs
) -> list[nnx.Module]:
    """The modules of a plan's layers, in order."""
    return [_make_layer(plan, split=split, rngs=rngs) for plan in plans]


def run_layers(layers: Sequence[nnx.Module], x: Picture, past: Past) -> tuple[Result, Past]:
    """Applies layers in order; the past is a list with one for each, None at a video's start."""
    following = []
    for layer, layer_past in zip(layers, past or [None] * len(layers), strict=True):
        x, layer_past = _done(layer(x, layer_past))
        following.append(layer_past)
    return x, following


def _done(result_and_past: tuple[Picture, Past]) -> tuple[Picture, Past]:
    """Has what a layer leaves for the next chunk cut out before the next layer begins.

    XLA otherwise does it at the program's end, and keeps the pictures it is cut out of until then.
    """
    return jax.lax.optimization_barrier(result_and_past)


def _make_layer(plan: Layer, *, split: SpatialSplit, rngs: nnx.Rngs) -> nnx.Module:
    match plan:
        case ResidualLevel():
            return Level(plan, split=split, rngs=rngs)
        case FrameAttention():
            return Attention(plan, split=split, rngs=rngs)
        case Resampling():
            return (Upsample if plan.up else Downsample)(plan, split=split, rngs=rngs)
        case ResidualBlocks() if plan.in_channels == plan.channels:
            return EqualBlocks(plan, split=split, rngs=rngs)
        case _:
            return WideningBlock(plan, split=split, rngs=rngs)
