"""A state without its padding, which is a layout's own: what a checkpoint holds.

Heads and feed-forward width are padded to what a layout divides (`wan_tpu.transformer.weights`).
Padding is zero in everything that belongs to a parameter, at the end of a dimension, so another
layout cuts it off and puts its own there. The order of rows is every layout's.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wan_tpu.checkpoints.weights import Weight
from wan_tpu.sharding.layout import AXES

Shapes = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""Of each parameter that is padded: its shape with and without padding."""


def padded_shapes(weights: list[Weight]) -> Shapes:
    """The parameters that have padding."""
    found = {}
    for weight in weights:
        layers = (len(weight.tensors),) if weight.stacked else ()
        whole, real = weight.shape, (*layers, *weight.tensor_shape)
        if whole != real:
            found[weight.name] = whole, real
    return found


def without_padding(tree: Any, shapes: Shapes) -> Any:
    """The same arrays, those that belong to a padded parameter cut to what is real."""
    if not shapes:
        return tree
    return jax.tree_util.tree_map_with_path(functools.partial(_change, shapes, _cut), tree)


def with_padding(tree: Any, like: Any, shapes: Shapes) -> Any:
    """`without_padding` undone, each array split as in `like`."""
    if not shapes:
        return tree

    def padded(path: Any, array: jax.Array, target: Any) -> jax.Array:
        return _change(shapes, functools.partial(_pad, target.sharding), path, array)

    return jax.tree_util.tree_map_with_path(padded, tree, like)


def abstract_without_padding(like: Any, shapes: Shapes) -> Any:
    """What `without_padding` gives, without numbers."""

    def cut(array: Any, _: Any, real: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(real, array.dtype, sharding=_split(array.sharding.mesh, real))

    return jax.tree_util.tree_map_with_path(functools.partial(_change, shapes, cut), like)


def name_of(path: tuple[Any, ...]) -> str | None:
    """The parameter that an array of a state belongs to; None for a count."""
    name = getattr(path[-1], "key", None)
    return name if isinstance(name, str) else None


def _change(shapes: Shapes, change: Any, path: tuple[Any, ...], array: Any) -> Any:
    found = shapes.get(name_of(path) or "")
    return array if found is None else change(array, *found)


def _cut(array: jax.Array, whole: tuple[int, ...], real: tuple[int, ...]) -> jax.Array:
    assert array.shape == whole, (array.shape, whole)
    target = _split(mesh_of(array), real)

    def cut(x: jax.Array) -> jax.Array:
        return x[tuple(slice(size) for size in real)]

    return jax.jit(cut, out_shardings=target)(array)


def _pad(
    target: NamedSharding, array: jax.Array, whole: tuple[int, ...], real: tuple[int, ...]
) -> jax.Array:
    def pad(x: jax.Array) -> jax.Array:
        return jnp.pad(x, [(0, size - n) for size, n in zip(whole, real, strict=True)])

    return jax.jit(pad, out_shardings=target)(array)


def mesh_of(array: jax.Array) -> Mesh:
    """The devices that it is split over."""
    sharding = array.sharding
    assert isinstance(sharding, NamedSharding)
    assert isinstance(sharding.mesh, Mesh)
    return sharding.mesh


def _split(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Over all devices along the first dimension that divides; whole where none does."""
    for dim, size in enumerate(shape):
        if size % mesh.size == 0:
            return NamedSharding(mesh, PartitionSpec(*[None] * dim, AXES))
    return NamedSharding(mesh, PartitionSpec())
