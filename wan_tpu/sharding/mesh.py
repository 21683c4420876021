"""Puts a layout onto devices: a JAX mesh with the axes dp, sp and tp."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from numpy.typing import ArrayLike

from wan_tpu.sharding.layout import AXES, Layout
from wan_tpu.sharding.neighbours import is_block, ordered_along_links


def make_mesh(layout: Layout, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh of a layout over `devices` (all devices of all processes when not given).

    On TPU the axes follow the chips' links: `mesh_utils.create_device_mesh` chooses which chips
    form each axis's groups, `ordered_along_links` their order. So the devices of one process need
    not follow one another in the mesh. Elsewhere, and where chips are no block (three of a square),
    devices keep the order that they are given in.

    Raises:
        LayoutError: the layout does not use exactly these devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    layout.require_devices(len(devices))
    if devices[0].platform == "tpu" and is_block(devices):
        grid = mesh_utils.create_device_mesh(layout.shape, devices, allow_split_physical_axes=True)
        grid = ordered_along_links(grid)
    else:
        grid = np.asarray(devices).reshape(layout.shape)
    return Mesh(grid, AXES)


def abstract_mesh(layout: Layout) -> AbstractMesh:
    """A layout's mesh without devices: enough to say how arrays would be split."""
    return AbstractMesh(layout.shape, AXES)


def platform_of(mesh: Mesh | AbstractMesh) -> str:
    """The platform whose compiler the mesh's programs go to; `none` for a mesh without devices."""
    return "none" if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0].platform


def device_kind_of(mesh: Mesh | AbstractMesh) -> str:
    """The kind of the mesh's devices, as `jax.Device.device_kind`; empty without devices."""
    return "" if isinstance(mesh, AbstractMesh) else mesh.devices.flat[0].device_kind


def memory_bytes(devices: Sequence[Any]) -> int | None:
    """What each of these devices has; None where its platform does not say, as a CPU."""
    here = set(jax.local_devices()).intersection(devices)
    stats = min(here, key=lambda device: device.id).memory_stats() if here else None
    return (stats or {}).get("bytes_limit")


def named(mesh: Mesh | AbstractMesh, *spec: str | tuple[str, ...] | None) -> NamedSharding:
    """The sharding that splits dimension i over the axes `spec[i]`; the rest is whole."""
    return NamedSharding(mesh, PartitionSpec(*spec))


def place(array: ArrayLike, sharding: NamedSharding) -> jax.Array:
    """Puts an array (or a number) that every process holds whole onto the mesh, each its part."""
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
