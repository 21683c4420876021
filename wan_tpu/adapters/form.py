"""What an adapter is, whatever file it comes from: differences of a transformer's tensors.

Tensors have diffusers' names (`blocks.0.attn1.to_q.weight`) and their rows the checkpoint's order.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch

from wan_tpu.checkpoints.arrays import as_numpy


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factors:
    """A difference of low rank: `alpha / rank * up @ down` is added to a weight.

    Attributes:
        down: `[rank, columns]`, "A"; of a convolution its input channels and kernel are columns.
        up: `[rows, rank]`, "B".
        alpha: above 0; None stands for the rank, which is a scale of 1.
    """

    down: np.ndarray
    up: np.ndarray
    alpha: float | None = None

    def __post_init__(self) -> None:
        assert self.down.ndim == self.up.ndim == 2
        assert self.alpha is None or self.alpha > 0, self.alpha
        assert self.down.shape[0] == self.up.shape[1], (self.down.shape, self.up.shape)

    @property
    def rank(self) -> int:
        """Columns of `up`."""
        return self.up.shape[1]

    @property
    def scale(self) -> float:
        """What the product is multiplied with."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapter:
    """What is added to one transformer at strength 1.

    Attributes:
        factors: by the name of the weight.
        differences: whole ones, of weights, biases, norms and modulations, by the tensor's name.
    """

    factors: Mapping[str, Factors] = dataclasses.field(default_factory=dict)
    differences: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def names(self) -> set[str]:
        """The tensors that it changes."""
        return {*self.factors, *self.differences}

    @property
    def described(self) -> str:
        """Its ranks and how much it changes: `rank 16, 240 matrices and 3 whole tensors`."""
        ranks = sorted({factors.rank for factors in self.factors.values()})
        parts = []
        if ranks:
            span = f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else str(ranks[0])
            parts.append(f"rank {span}, {len(self.factors)} matrices")
        if self.differences:
            parts.append(f"{len(self.differences)} whole tensors")
        return " and ".join(parts) or "nothing"


Array = np.ndarray | torch.Tensor
"""Of any float dtype."""


def factors_of(
    downs: Mapping[str, Array], ups: Mapping[str, Array], *, alpha: float | None = None
) -> dict[str, Factors]:
    """Factors from the two halves that a training holds.

    Args:
        downs: `[rank, columns]` by the name of the weight, columns in the checkpoint's order.
        ups: `[rows, rank]` by the same names, rows in the checkpoint's order.
        alpha: of all of them; None for the rank of each.
    """
    assert downs.keys() == ups.keys(), downs.keys() ^ ups.keys()
    return {
        name: Factors(down=as_numpy(downs[name]), up=as_numpy(ups[name]), alpha=alpha)
        for name in downs
    }
