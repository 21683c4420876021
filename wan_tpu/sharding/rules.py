"""Which mesh axis splits which array: the one place where layouts meet shapes.

Weights: tensor parallelism splits the dimension that a model names (heads, feed-forward width).
With `weights="sharded"` dp and sp split each large weight further; the layer that needs it gathers
it back to the tensor-parallel split (`gathered`). Activations: batch over dp, tokens over sp and
tp, gathered over tp where heads or the feed-forward width are split instead.
"""

import math

from jax.sharding import PartitionSpec

from wan_tpu.sharding.layout import DP, SP, TP, Layout

MIN_SHARDED_ELEMENTS = 16_384
"""Weights with fewer elements a layer are not split over dp and sp: gathering them costs a latency
for nothing (a 14B bias is 5,120 elements, its smallest matrix 327,680)."""

RESIDUAL = PartitionSpec(DP, (SP, TP), None)
"""`[batch, tokens, dim]` between attention and feed-forward: every device holds its own tokens."""

TOKENS = PartitionSpec(DP, SP, None)
"""`[batch, tokens, dim]` entering a product whose output is split over tp."""

SPLIT_FEATURES = PartitionSpec(DP, SP, TP)
"""`[batch, tokens, features]` whose features (heads, feed-forward width) are split over tp."""

LATENT_TOKENS = PartitionSpec(None, (SP, TP), None)
"""`[1, tokens, channels]` of the scheduler: both guidance branches share it."""


def split_weight(
    shape: tuple[int, ...], layout: Layout, *, tp_dim: int | None = None, stacked: bool = False
) -> PartitionSpec:
    """How one weight is split.

    Args:
        shape: of one layer, without the layer dimension.
        layout: the layout.
        tp_dim: the dimension that tensor parallelism splits; None for none.
        stacked: whether the array has a layer dimension in front (never split).
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
    return PartitionSpec(*([None] * stacked), *spec)


def gathered(spec: PartitionSpec) -> PartitionSpec:
    """The split of one layer's weight while it is used: over tp alone, layer dimension dropped."""

    def tp_only(axes: str | tuple[str, ...] | None) -> str | None:
        return TP if axes == TP or (isinstance(axes, tuple) and TP in axes) else None

    return PartitionSpec(*(tp_only(axes) for axes in spec[1:]))
