"""The matrices of a LoRA as weights: split, padded and ordered as the transformer's own.

W + B A (Hu et al. 2021, arXiv:2106.09685). A takes what W takes and B gives what W gives, so A's
columns are those of W and B's rows are W's rows, in whatever order and with whatever padding those
are stored; the rank is nobody's business but theirs.
"""

import dataclasses

import jax.numpy as jnp
from jax.sharding import PartitionSpec

from wan_tpu.checkpoints.weights import Weight
from wan_tpu.sharding.layout import Layout
from wan_tpu.sharding.rules import is_over_tp, split_weight
from wan_tpu.torch_module import LORA_DOWN, LORA_UP

DOWN_TENSOR, UP_TENSOR = "lora_A.weight", "lora_B.weight"
"""What takes the place of `weight` in the names of a file's tensors, as peft has it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoraShape:
    """Where low-rank matrices are.

    Attributes:
        rank: of all of them.
        targets: linears of a block by their names in it: `attn1.to_q`.
    """

    rank: int
    targets: tuple[str, ...]

    def ranks(self) -> dict[str, int]:
        """The rank of each target."""
        return dict.fromkeys(self.targets, self.rank)


def lora_weights(weights: list[Weight], shape: LoraShape, layout: Layout) -> list[Weight]:
    """A and B of every target, float32, for all layers.

    Args:
        weights: of the transformer.
        shape: which of them are targets.
        layout: of the transformer.
    """
    targets = {f"{target}.weight" for target in shape.targets}
    found = []
    for weight in weights:
        if weight.stacked and weight.name.split(".*.")[1] in targets:
            found += [_factor(weight, shape.rank, dim, layout) for dim in (1, 0)]
    assert len(found) == 2 * len(targets), (shape, [weight.name for weight in found])
    return found


def _factor(weight: Weight, rank: int, dim: int, layout: Layout) -> Weight:
    """The factor that shares a dimension with the weight: A its columns, B its rows."""
    size, padded = weight.tensor_shape[dim], weight.layer_shape[dim]
    name, tensor = (LORA_DOWN, DOWN_TENSOR) if dim else (LORA_UP, UP_TENSOR)
    shapes = [(rank, n) if dim else (n, rank) for n in (size, padded)]
    over_tp = is_over_tp(weight.spec[1 + dim])  # the layers come first
    spec = split_weight(shapes[1], layout, tp_dim=dim if over_tp else None)
    return Weight(
        name=f"{weight.name.removesuffix('weight')}{name}",
        tensors=tuple(f"{t.removesuffix('weight')}{tensor}" for t in weight.tensors),
        tensor_shape=shapes[0],
        dtype=jnp.float32,
        stacked=True,
        rows={dim: weight.rows[dim]} if dim in weight.rows else {},
        spec=PartitionSpec(None, *spec),
    )
