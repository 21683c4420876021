"""Other meshes over the same devices, for batches of another size, and the same bytes seen on them.

A layout with dp works on the two branches of guidance side by side. Without guidance there is one,
and half of the slice would compute a copy of it; several videos made together are more than two,
and none of them needs the others' tokens. So what dp and sp share is divided anew: the same devices
in the same order, other shards. Weights that are sharded over (dp, sp) lie on the other mesh
exactly as they lie already; nothing is moved, nothing is held twice.
"""

import dataclasses
import math

import jax
from jax.sharding import Mesh, NamedSharding

from wan_tpu.sharding.layout import AXES, SEQUENCE_PARALLEL, Layout, with_fitting_heads


def one_branch_layout(layout: Layout, num_heads: int) -> Layout:
    """The layout for a batch of one over the devices of `layout`, with the same padded weights.

    Args:
        layout: of the two branches.
        num_heads: of the model; how it is padded must not change, or weights would.

    Returns:
        `layout` with dp merged into sp, as `batch_layout` says. `layout` itself where no way pads
        the same: then the second branch computes a copy.
    """
    return batch_layout(layout, num_heads, 1)


def batch_layout(layout: Layout, num_heads: int, batch: int) -> Layout:
    """The layout for a batch over the devices of `layout`, with the same padded weights.

    As much of dp as the batch fills without a copy: entries of a batch exchange nothing, tokens of
    one do so in every layer. What remains is sp's; tp, which the weights know, stays.

    Args:
        layout: of the model.
        num_heads: of the model; how it is padded must not change, or weights would.
        batch: entries of the transformer's batch: for each video one, with guidance two.

    Returns:
        Of the layouts with the same tp whose dp divides the batch and which pad the same heads,
        the one of the largest dp: its own way to share the sequence where that pads the same, else
        another. `layout` itself where there is none: then dp computes copies.
    """
    ways = layout.dp * layout.sp
    common = math.gcd(ways, batch)
    padded = layout.padded_heads(num_heads)
    for dp in (dp for dp in range(common, 0, -1) if common % dp == 0):
        for mode in (layout.sequence_parallel, *SEQUENCE_PARALLEL):
            shape = {"dp": dp, "sp": ways // dp, "sequence_parallel": mode, "head_ways": None}
            alike = dataclasses.replace(layout, **shape)
            for found in (alike, with_fitting_heads(alike, padded)):
                if found.padded_heads(num_heads) == padded:
                    return found
    return layout


def merged_mesh(mesh: Mesh, layout: Layout) -> Mesh:
    """The devices of `mesh`, in their order, with the axes of `layout`."""
    return (
        mesh
        if mesh.devices.shape == layout.shape
        else Mesh(mesh.devices.reshape(layout.shape), AXES)
    )


def seen_on(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    """The same array under another sharding; its memory is shared where the parts are the same.

    Args:
        array: on the devices of `sharding`.
        sharding: on any mesh over the same devices.
    """
    if array.sharding == sharding:
        return array
    if not array.sharding.is_equivalent_to(sharding, array.ndim):
        return jax.device_put(array, sharding)
    parts = [shard.data for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, parts)
