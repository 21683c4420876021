"""A layer's weights from the parts that devices hold: in its own turn, or in the one before.

While a layer works, gathers of its weights ride in products that XLA makes, one in each. Nothing
rides in a kernel of ours, so the weights of self-attention's queries, keys and values would be
waited for, and their exchanges behind them. They are gathered in the turn before, all three as one,
and ride in the last product of its feed-forward: of the 14B's step at 720p on a v6e-8 a third of
what waits for links goes (2026-11-27, `benchmarks/results/2026-11-27-overlap.md`).
"""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int32

from wan_tpu.checkpoints.weights import Weight
from wan_tpu.sharding.rules import gathered
from wan_tpu.torch_bridge import Params, with_prefix
from wan_tpu.transformer.processors import AttentionSetting, has_kernel
from wan_tpu.transformer.projection import Projection

AHEAD = tuple(f"attn1.{name}.weight" for name in ("to_q", "to_k", "to_v"))
"""Names, within a layer, of the weights that may be gathered a turn before."""

Gathered = Float[Array, "3 channels dim"]
"""The weights of `AHEAD` of one layer, as their products use them."""


def gather_layer(
    weights: Params, known: Iterable[Weight], prefix: str, setting: AttentionSetting
) -> dict[str, jax.Array]:
    """One layer's weights split over tp alone, as its products use them.

    Args:
        weights: by their names within the layer.
        known: of the model: how each is split.
        prefix: of the names of stacks.
        setting: has the mesh.
    """
    specs = {w.name.removeprefix(prefix): w.spec for w in known if w.stacked}

    def gather(weight: jax.Array, spec: PartitionSpec) -> jax.Array:
        # As it lies, and then gathered: so that gradients, which come the other way, are
        # scattered to where the weight lies before the layers' are put together.
        weight = setting.constrain(weight, PartitionSpec(*spec[1:]))
        return setting.constrain(weight, gathered(spec))

    return {name: gather(weight, specs[name]) for name, weight in weights.items()}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GatherAhead:
    """How the weights of `AHEAD` come a turn before they are used.

    Attributes:
        stacks: of all layers, `[layers, channels, dim]` each, in the order of `AHEAD`.
        spec: how each of them is split.
        setting: has the mesh.
    """

    stacks: tuple[Float[Array, "layers channels dim"], ...]
    spec: PartitionSpec
    setting: AttentionSetting

    def parts(self, layer: int | Int32[Array, ""]) -> Gathered:
        """What devices hold of a layer's, not gathered yet; the first comes after the last."""
        turn = layer % self.stacks[0].shape[0]
        of_layer = [
            jax.lax.dynamic_index_in_dim(stack, turn, keepdims=False) for stack in self.stacks
        ]
        return self.setting.constrain(jnp.stack(of_layer), PartitionSpec(None, *self.spec[1:]))

    def gather(self, parts: Gathered) -> Gathered:
        """The same, whole on every device."""
        return self.setting.constrain(parts, PartitionSpec(None, *gathered(self.spec)))

    def by_name(self, whole: Gathered) -> dict[str, jax.Array]:
        """As a layer's parameters."""
        return {name: whole[number] for number, name in enumerate(AHEAD)}


def gather_ahead(
    params: Params,
    weights: Iterable[Weight],
    prefix: str,
    setting: AttentionSetting,
    projection: Projection,
    hidden: Float[Array, "batch tokens dim"],
) -> GatherAhead | None:
    """How to gather ahead; None where kernels do not make the projections, or nothing is split.

    Args:
        params: of the model.
        weights: of the model: how each is split.
        prefix: of the names of stacks.
        setting: mesh, layout and attention.
        projection: of queries, keys and values.
        hidden: the residual stream.
    """
    by_name = {w.name: w for w in weights}
    first, *others = (by_name[prefix + name] for name in AHEAD)
    is_split = first.bytes_per_device(setting.mesh.shape) < first.num_bytes
    in_kernels = has_kernel(setting, projection, hidden, channels=first.layer_shape[0])
    if not (is_split and in_kernels and all(other.spec == first.spec for other in others)):
        return None
    stacks = with_prefix(params, prefix)
    return GatherAhead(
        stacks=tuple(stacks[name] for name in AHEAD), spec=first.spec, setting=setting
    )
