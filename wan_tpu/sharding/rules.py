"""Which mesh axis splits which array: the one place where layouts meet shapes. No spec elsewhere.

Weights: tensor parallelism splits the dimension that a model names (heads, feed-forward width).
With `weights="sharded"` dp and sp split each large weight further; the layer that needs it gathers
it back to the tensor-parallel split (`gathered`). Activations: batch over dp, tokens over sp and
tp, gathered over tp where heads or the feed-forward width are split instead.
"""

import math

from jax.sharding import PartitionSpec

from wan_tpu.sharding.layout import AXES, DP, SP, TP, Layout

MIN_SHARDED_ELEMENTS = 16_384
"""Weights with fewer elements a layer are not split over dp and sp: gathering them costs a latency
for nothing (a 14B bias is 5,120 elements, its smallest matrix 327,680)."""

WHOLE = PartitionSpec()
"""On every device."""

GATHER_WEIGHTS_FIRST = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}
"""Size in MiB from which XLA multiplies by a sharded weight piece by piece as its shards come in.

On a v7x it does from a few hundred, and reads and writes the whole sum once a piece: the 14B's step
at 720p moves 2,059 GB through a chip's memory, 591 GB when weights are gathered first, and 40 % of
the compiler's cycles outside attention go (2026-11-26, jax 0.10.2, libtpu 0.0.42.1). A copy of all
weights on every device (`replicated`) moves 1,416 GB."""

TRANSFERS_BESIDE_WORK = {
    "xla_enable_async_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_all_to_all": "true",
}
"""A TPU's program goes on while its chips exchange: the first two together let a gather ride in the
products between its start and its end, the third sends all-to-alls beside whatever follows.

Without them every transfer of the step is waited for. What each does, and what others set and
changes nothing or costs more than it hides: benchmarks/results/2026-11-27-overlap.md."""

TPU_COMPILER_OPTIONS = {**GATHER_WEIGHTS_FIRST, **TRANSFERS_BESIDE_WORK}
"""Of every program that gathers weights or exchanges tokens."""

RESIDUAL = PartitionSpec(DP, (SP, TP), None)
"""`[batch, tokens, dim]` between attention and feed-forward: every device holds its own tokens."""

WHOLE_FEATURES = PartitionSpec(DP, SP, None)
"""`[batch, tokens, dim]` entering a product whose output is split over tp."""

SPLIT_FEATURES = PartitionSpec(DP, SP, TP)
"""`[batch, tokens, features]` whose features (heads, feed-forward width) are split over tp."""

GROUPED_HEADS = PartitionSpec(None, DP, SP, TP)
"""`[groups, batch, tokens, heads of a group * head_dim]`: what attention exchanges."""

GROUP_SCALES = PartitionSpec(None, DP, TP)
"""`[groups, batch, heads of a group]`, a number of each head's keys: every sp shard has all."""

CONTEXT = PartitionSpec(None, DP, None, TP)
"""`[layers, batch, keys, heads * head_dim]`: every sp shard holds all the keys that come from text
or an image. With one group of heads for the layers it is the split of one layer's."""

KEY_TOKENS = PartitionSpec(DP, None, None)
"""`[batch, keys, dim]`, embedded text before it is keys and values: whole on every sp and tp."""

FEATURES = PartitionSpec(TP)
"""`[heads * head_dim]`, a norm's weight."""

POSITIONS = PartitionSpec(SP, None)
"""`[tokens, head_dim]`, the rotary tables."""

LATENT_TOKENS = PartitionSpec(None, (SP, TP), None)
"""`[1, tokens, channels]` of the scheduler: both guidance branches share it."""


def picture(
    rank: int, *, height_axes: tuple[str, ...] = (), width_axes: tuple[str, ...] = ()
) -> PartitionSpec:
    """`[..., height, width, channels]` with `rank` dimensions, cut along these mesh axes."""
    return PartitionSpec(*[None] * (rank - 3), height_axes or None, width_axes or None, None)


def vectors_of(samples: int) -> PartitionSpec:
    """`[samples, rows, dim]` for all tokens of a sample; one sample stands for the whole batch."""
    return PartitionSpec(DP if samples > 1 else None, None, None)


def split_weight(
    shape: tuple[int, ...], layout: Layout, *, tp_dim: int | None = None
) -> PartitionSpec:
    """How one weight is split, a layer's where layers are stacked.

    Args:
        shape: without the layer dimension.
        layout: the layout.
        tp_dim: the dimension that tensor parallelism splits; None for none.
    """
    axes: list[tuple[str, ...]] = [()] * len(shape)
    if tp_dim is not None:
        assert shape[tp_dim] % layout.tp == 0, f"dimension {tp_dim} of {shape} is not padded to tp"
        axes[tp_dim] = (TP,)
    if layout.weights == "sharded" and math.prod(shape) >= MIN_SHARDED_ELEMENTS:
        # Rows first: a gather of whole rows needs no copy to put them in order.
        for dim, size in enumerate(shape):
            ways = layout.dp * layout.sp * (layout.tp if dim == tp_dim else 1)
            if size % ways == 0:
                axes[dim] = (*axes[dim], DP, SP)
                break
    spec = [None if not names else names[0] if len(names) == 1 else names for names in axes]
    return PartitionSpec(*spec)


def split_over_all(shape: tuple[int, ...], num_devices: int, *, dim: int) -> PartitionSpec:
    """How a matrix is split over all devices, whatever the layout, one dimension over every axis.

    Whole where it is a vector, small, or does not divide.

    Args:
        shape: without the layer dimension.
        num_devices: of the mesh.
        dim: the dimension to split.
    """
    if len(shape) < 2 or math.prod(shape) < MIN_SHARDED_ELEMENTS or shape[dim] % num_devices:
        return WHOLE
    axes: list[tuple[str, ...] | None] = [None] * len(shape)
    axes[dim] = AXES
    return PartitionSpec(*axes)


def is_over_tp(axes: str | tuple[str, ...] | None) -> bool:
    """Whether tp is among the axes that split a dimension."""
    return axes == TP or (isinstance(axes, tuple) and TP in axes)


def gathered(spec: PartitionSpec) -> PartitionSpec:
    """The split of one layer's weight while it is used: over tp alone, layer dimension dropped."""
    return PartitionSpec(*(TP if is_over_tp(axes) else None for axes in spec[1:]))
