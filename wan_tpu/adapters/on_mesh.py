"""Adapters added to weights that are on the devices already: another set beside the base's.

What an adapter adds travels as its small matrices, rows and columns put in order and split as the
weight's are, and a small program per shape of weight makes `round(float32(base) + what is added)`.
The base is not changed, nothing is ever subtracted, and weights that no adapter changes are not
copied. Whole differences have a weight's own size and travel whole, as weights are loaded.

Products are summed over the rank by the devices and elsewhere by torch, so that in float32 the
last bit may differ from what `MergedSource` reads. In a narrower dtype the base has been rounded
already: where its file is wider, a sum is rounded twice.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from wan_tpu.adapters.merge import Strengthened
from wan_tpu.adapters.placing import place_difference, place_terms
from wan_tpu.adapters.terms import Term
from wan_tpu.checkpoints.weights import Weight
from wan_tpu.stage import Stage, abstract_like

Compile = Callable[[Stage], Callable[..., Any]]
"""Where a stage's program comes from."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """Weights of a component with adapters in them.

    Attributes:
        changed: by name, those that an adapter changes.
        bytes_moved: from this process to its devices.
    """

    changed: Mapping[str, jax.Array]
    bytes_moved: int


def merge_on_mesh(
    weights: Sequence[Weight],
    params: Mapping[str, jax.Array],
    adapters: Sequence[Strengthened],
    mesh: Mesh,
    compile: Compile,
) -> Merged:
    """The weights that adapters change, with what they add, as new arrays split as the base's.

    Args:
        weights: of the component.
        params: the base's arrays by name; they stay as they are.
        adapters: in the order in which they are added; they fit (`wan_tpu.adapters.fit`).
        mesh: of the base's arrays.
        compile: gives the program of a stage.
    """
    adapters = [each for each in adapters if each.strength != 0]
    changed: dict[str, jax.Array] = {}
    bytes_moved = 0
    for weight in weights:
        terms = tuple(place_terms(weight, adapters, mesh))
        difference = place_difference(weight, adapters, mesh)
        if not terms and difference is None:
            continue
        stage = merge_stage(weight, mesh, abstract_like((params[weight.name], terms, difference)))
        merged = compile(stage)(params[weight.name], terms, difference)
        bytes_moved += sum(
            shard.data.nbytes
            for array in jax.tree.leaves((terms, difference))
            for shard in array.addressable_shards
        )
        # Before the next weight's: what is added may be as large as the weight.
        changed[weight.name] = jax.block_until_ready(merged)
    return Merged(changed=changed, bytes_moved=bytes_moved)


def merge_stage(weight: Weight, mesh: Mesh, arguments: tuple[Any, ...]) -> Stage:
    """The program that adds something to a weight.

    Args:
        weight: which.
        mesh: of its array.
        arguments: the base's array, terms, and a whole difference or None; all abstract.
    """
    return Stage(
        name="merge",
        function=functools.partial(_merge, stacked=weight.stacked),
        arguments=arguments,
        mesh=mesh,
        closes_over=(weight.spec, weight.stacked),
        out_shardings=NamedSharding(mesh, weight.spec),
        matmul_precision="highest",
    )


def _merge(base: Array, terms: tuple[Term, ...], difference: Array | None, *, stacked: bool):
    """The base with all that is added, rounded once; layer by layer, so that sums take little."""
    if not stacked:
        base, difference = base[None], None if difference is None else difference[None]

    def one(layer: Any) -> Array:
        base, terms, difference = layer
        plain = base.astype(jnp.float32)
        out = plain
        for term in terms:
            out = out + term.added_to(plain)
        return (out if difference is None else out + difference).astype(base.dtype)

    merged = jax.lax.map(one, (base, terms, difference))
    return merged if stacked else merged[0]
