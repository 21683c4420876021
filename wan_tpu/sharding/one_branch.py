"""One branch of guidance on all devices: a second mesh over them, and the same bytes seen on it.

A layout with dp works on the two branches of guidance side by side. Without guidance there is one,
and half of the slice would compute a copy of it. So dp is merged into sp: the same devices in the
same order, twice the shards of tokens. Weights that are sharded over (dp, sp) lie on the merged
mesh exactly as they lie already; nothing is moved, nothing is held twice.
"""

import dataclasses

import jax
from jax.sharding import Mesh, NamedSharding

from wan_tpu.sharding.layout import AXES, SEQUENCE_PARALLEL, Layout


def one_branch_layout(layout: Layout, num_heads: int) -> Layout:
    """The layout for a batch of one over the devices of `layout`, with the same padded weights.

    Args:
        layout: of the two branches.
        num_heads: of the model; how it is padded must not change, or weights would.

    Returns:
        `layout` with dp merged into sp. Its own way to share the sequence where that pads the same
        heads, else one that splits no heads over sp. `layout` itself where dp is 1 or no way pads
        the same: then the second branch computes a copy.
    """
    if layout.dp == 1:
        return layout
    merged = dataclasses.replace(layout, dp=1, sp=layout.dp * layout.sp)
    modes = (layout.sequence_parallel, *SEQUENCE_PARALLEL)
    for mode in modes:
        found = dataclasses.replace(merged, sequence_parallel=mode)
        if found.padded_heads(num_heads) == layout.padded_heads(num_heads):
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
