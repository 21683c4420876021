"""What an adapter is, whatever file it comes from: differences of a transformer's tensors.

Tensors have diffusers' names (`blocks.0.attn1.to_q.weight`) and their rows the checkpoint's order.
"""

import dataclasses
from collections.abc import Iterable, Mapping

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


DOWN_TENSOR, UP_TENSOR = ".lora_A.weight", ".lora_B.weight"
"""What the names of a training's tensors end in, after the module's."""


def factors_of(
    tensors: Iterable[tuple[str, Array]], *, alpha: float | None = None
) -> dict[str, Factors]:
    """Factors from the tensors of a training, as `checkpoint_tensors` gives them.

    Args:
        tensors: names and arrays, `blocks.0.attn1.to_q.lora_A.weight` `[rank, columns]` and
            `blocks.0.attn1.to_q.lora_B.weight` `[rows, rank]`, in the checkpoint's order.
        alpha: of all of them; None for the rank of each.

    Returns:
        By the name of the weight that they change.
    """
    arrays = {name: as_numpy(array) for name, array in tensors}
    modules = [name.removesuffix(DOWN_TENSOR) for name in arrays if name.endswith(DOWN_TENSOR)]
    assert len(arrays) == 2 * len(modules), sorted(arrays)
    return {
        f"{module}.weight": Factors(
            down=arrays[module + DOWN_TENSOR], up=arrays[module + UP_TENSOR], alpha=alpha
        )
        for module in modules
    }
