"""What an adapter is, whatever file it comes from: differences of a transformer's tensors.

Tensors have diffusers' names (`blocks.0.attn1.to_q.weight`) and their rows the checkpoint's order.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import torch


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
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the difference."""
        return len(self.up), self.down.shape[1]

    @property
    def scale(self) -> float:
        """What the product is multiplied with."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hadamard:
    """LoHa (FedPara, arXiv 2108.06098; LyCORIS): two products of low rank, multiplied by element.

    `alpha / rank * (first.up @ first.down) * (second.up @ second.down)` is added to a weight.

    Attributes:
        first, second: of one shape and rank; their own alphas are None.
        alpha: above 0; None stands for the rank.
    """

    first: Factors
    second: Factors
    alpha: float | None = None

    def __post_init__(self) -> None:
        assert self.first.shape == self.second.shape
        assert self.first.rank == self.second.rank
        assert self.alpha is None or self.alpha > 0, self.alpha

    @property
    def rank(self) -> int:
        """Of each of the two."""
        return self.first.rank

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the difference."""
        return self.first.shape

    @property
    def scale(self) -> float:
        """What the product is multiplied with."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kronecker:
    """LoKr (LyCORIS, arXiv 2309.14859): `scale * kron(left, right)` is added to a weight.

    Attributes:
        left, right: whole, `[rows, columns]`, or factors of it, whose own alpha is None; of a
            convolution the right one's columns are its input channels and kernel.
        alpha: above 0; None for a scale of 1.
        given_rank: what PEFT's configuration says; else that of the factors, and where both are
            whole there is none, and the scale is 1 whatever alpha is (as in LyCORIS).
    """

    left: "np.ndarray | Factors"
    right: "np.ndarray | Factors"
    alpha: float | None = None
    given_rank: int | None = None

    def __post_init__(self) -> None:
        assert len(self.left.shape) == len(self.right.shape) == 2
        assert self.alpha is None or self.alpha > 0, self.alpha

    @property
    def rank(self) -> int | None:
        """Of the factors; None where both matrices are whole and nothing says one."""
        if self.given_rank is not None:
            return self.given_rank
        factored = [each for each in (self.right, self.left) if isinstance(each, Factors)]
        return factored[0].rank if factored else None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the difference."""
        (rows, columns), (inner_rows, inner_columns) = self.left.shape, self.right.shape
        return rows * inner_rows, columns * inner_columns

    @property
    def scale(self) -> float:
        """What the product is multiplied with."""
        if self.alpha is None or self.rank is None:
            return 1.0
        return self.alpha / self.rank


Difference = Factors | Hadamard | Kronecker
"""Of a weight, `scale` times a matrix of `shape` that is made where it is needed."""

_FORMS = {Factors: "", Hadamard: "LoHa", Kronecker: "LoKr"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adapter:
    """What is added to one transformer at strength 1.

    Attributes:
        factors: by the name of the weight.
        differences: whole ones, of weights, biases, norms and modulations, by the tensor's name.
        magnitudes: of weights that have factors, DoRA's (arXiv 2402.09353): the weight with its
            difference is scaled to have these norms. `[rows]` or `[rows, 1]`: of each row over all
            columns; `[1, columns]`: of each column over all rows.
    """

    factors: Mapping[str, Difference] = dataclasses.field(default_factory=dict)
    differences: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    magnitudes: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        assert self.magnitudes.keys() <= self.factors.keys()

    @property
    def names(self) -> set[str]:
        """The tensors that it changes."""
        return {*self.factors, *self.differences}

    def without(self, names: set[str]) -> "Adapter":
        """The same, but for what it changes of these tensors."""
        return Adapter(
            factors={name: each for name, each in self.factors.items() if name not in names},
            differences={k: each for k, each in self.differences.items() if k not in names},
            magnitudes={k: each for k, each in self.magnitudes.items() if k not in names},
        )

    def form_of(self, name: str) -> str:
        """What the difference of a weight that has factors is called: LoRA, LoHa, LoKr, DoRA."""
        form = _FORMS[type(self.factors[name])]
        if name in self.magnitudes:
            return f"DoRA with {form}" if form else "DoRA"
        return form or "LoRA"

    @property
    def described(self) -> str:
        """Its ranks and how much it changes: `rank 16, 240 matrices and 3 whole tensors`."""
        by_form: dict[str, list[Difference]] = {}
        for name, each in self.factors.items():
            by_form.setdefault(self.form_of(name), []).append(each)
        parts = []
        for form, made in by_form.items():
            ranks = sorted({each.rank for each in made if each.rank is not None})
            span = f"{ranks[0]} to {ranks[-1]}" if len(ranks) > 1 else "".join(map(str, ranks))
            words = f"rank {span}, " if ranks else ""
            if form != "LoRA":
                words = f"{form} of {words}" if ranks else f"{form}, "
            parts.append(f"{words}{len(made)} matrices")
        if self.differences:
            parts.append(f"{len(self.differences)} whole tensors")
        return " and ".join(parts) or "nothing"


Array: TypeAlias = "np.ndarray | torch.Tensor"
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
    from wan_tpu.checkpoints.arrays import as_numpy  # loads JAX, which a reader does without

    arrays = {name: as_numpy(array) for name, array in tensors}
    modules = [name.removesuffix(DOWN_TENSOR) for name in arrays if name.endswith(DOWN_TENSOR)]
    assert len(arrays) == 2 * len(modules), sorted(arrays)
    return {
        f"{module}.weight": Factors(
            down=arrays[module + DOWN_TENSOR], up=arrays[module + UP_TENSOR], alpha=alpha
        )
        for module in modules
    }
