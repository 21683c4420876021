"""Splits pictures over a mesh: which axes cut height and width, and what neighbours exchange.

A convolution at the border of a device's part needs a column (or a row) of its neighbour's. The
exchange is written out, per device under `shard_map`: what a device at the picture's edge receives
from nobody is zero, and that is the convolution's own padding.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Float

from wan_tpu.sharding.rules import picture

HEIGHT, WIDTH = -3, -2
"""Dimensions of `[..., height, width, channels]`."""

Axes = tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SpatialSplit:
    """How pictures are cut; the default is not at all. Hashable, so modules may hold it.

    Attributes:
        height_axes: mesh axes that cut the height, outermost first.
        width_axes: mesh axes that cut the width.
        height_ways: number of parts of the height.
        width_ways: number of parts of the width.
        convolution: which of `convolution.CONVOLUTIONS` each device uses on its part.
    """

    height_axes: Axes = ()
    width_axes: Axes = ()
    height_ways: int = 1
    width_ways: int = 1
    convolution: str = "by_frame"

    def spec(self, rank: int) -> PartitionSpec:
        """Of an array `[..., height, width, channels]` with `rank` dimensions."""
        return picture(rank, height_axes=self.height_axes, width_axes=self.width_axes)

    def pad_rows(
        self, x: Float[Array, "*before height width channels"], above: int, below: int
    ) -> Float[Array, "*before height+{above}+{below} width channels"]:
        """Puts the neighbours' rows, or zeros at the picture's edge, around `x` (per device)."""
        return _with_neighbours(x, HEIGHT, self.height_axes, self.height_ways, above, below)

    def pad_columns(
        self, x: Float[Array, "*before height width channels"], left: int, right: int
    ) -> Float[Array, "*before height width+{left}+{right} channels"]:
        """Puts the neighbours' columns, or zeros at the picture's edge, beside `x` (per device)."""
        return _with_neighbours(x, WIDTH, self.width_axes, self.width_ways, left, right)

    def gather(self, x: Float[Array, "..."], dim: int) -> Float[Array, "..."]:
        """All devices' parts of `x` one after another along `dim` (per device)."""
        axes = self.height_axes + self.width_axes
        return jax.lax.all_gather(x, axes, axis=dim, tiled=True) if axes else x


def split_for(mesh: Mesh | AbstractMesh, latent_height: int, latent_width: int) -> PartitionSpec:
    """How `[batch, frames, height, width, channels]` is cut over all of a mesh that fits.

    Cuts into as many equal parts as the sizes allow, the width first; axes that fit neither
    dimension repeat the work.

    Args:
        mesh: any axes.
        latent_height: rows of the latent video; pixels are cut the same way.
        latent_width: columns of the latent video.
    """
    return spatial_split(mesh, latent_height, latent_width).spec(5)


def spatial_split(
    mesh: Mesh | AbstractMesh,
    latent_height: int,
    latent_width: int,
    *,
    convolution: str = "by_frame",
) -> SpatialSplit:
    """The split behind `split_for`, with what a device does with its part."""
    best = SpatialSplit(convolution=convolution)
    for choice in itertools.product("wh-", repeat=len(mesh.axis_names)):
        axes = {
            side: tuple(
                name
                for name, where in zip(mesh.axis_names, choice, strict=True)
                if where == side and mesh.shape[name] > 1
            )
            for side in "wh"
        }
        ways = {side: math.prod(mesh.shape[name] for name in axes[side]) for side in "wh"}
        if latent_width % ways["w"] or latent_height % ways["h"]:
            continue
        if (ways["w"] * ways["h"], ways["w"]) > (
            best.width_ways * best.height_ways,
            best.width_ways,
        ):
            best = SpatialSplit(
                height_axes=axes["h"],
                width_axes=axes["w"],
                height_ways=ways["h"],
                width_ways=ways["w"],
                convolution=convolution,
            )
    return best


def _with_neighbours(
    x: Float[Array, "..."], dim: int, axes: Axes, ways: int, before: int, after: int
) -> Float[Array, "..."]:
    """`x` with `before` and `after` more entries along `dim`."""
    if ways == 1:
        padding = [(0, 0)] * x.ndim
        padding[dim] = (before, after)
        return jnp.pad(x, padding) if before or after else x
    size = x.shape[dim]
    parts = [x]
    if before:
        last = jax.lax.slice_in_dim(x, size - before, size, axis=dim % x.ndim)
        parts.insert(0, jax.lax.ppermute(last, axes, [(i, i + 1) for i in range(ways - 1)]))
    if after:
        first = jax.lax.slice_in_dim(x, 0, after, axis=dim % x.ndim)
        parts.append(jax.lax.ppermute(first, axes, [(i + 1, i) for i in range(ways - 1)]))
    return jnp.concatenate(parts, axis=dim)
