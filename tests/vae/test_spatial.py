"""How pictures are cut over a mesh, and what neighbours exchange."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from wan_tpu.sharding.layout import AXES, Layout, factorisations, parse_layout
from wan_tpu.sharding.mesh import abstract_mesh, make_mesh
from wan_tpu.vae.spatial import spatial_split, split_for


@pytest.mark.parametrize(
    ("layout", "height", "width", "expected"),
    [
        ("dp2-sp2-tp2", 90, 160, (None, ("dp", "sp", "tp"))),
        ("tp8", 90, 160, (None, ("tp",))),
        ("dp2-sp4", 8, 12, (("dp",), ("sp",))),
        ("dp2-sp2-tp2", 6, 6, (("sp",), ("dp",))),
        ("sp8", 5, 7, (None, None)),
        ("single", 90, 160, (None, None)),
        ("dp16-tp16", 96, 160, (("tp",), ("dp",))),
    ],
)
def test_splits(layout, height, width, expected):
    """Width first; what fits neither dimension repeats the work."""
    mesh = abstract_mesh(parse_layout(layout))
    assert split_for(mesh, height, width) == PartitionSpec(None, None, *expected, None)


def best_possible(layout: Layout, height: int, width: int) -> int:
    """The most parts that any use of the axes gives, tried one by one."""
    best = 1
    for uses in itertools.product(range(3), repeat=3):
        ways = [
            math.prod(s for s, use in zip(layout.shape, uses, strict=True) if use == side)
            for side in range(2)
        ]
        if height % ways[0] == 0 and width % ways[1] == 0:
            best = max(best, math.prod(ways))
    return best


@pytest.mark.parametrize("layout", factorisations(8), ids=str)
def test_every_size_fits_and_uses_what_it_can(layout):
    mesh = abstract_mesh(layout)
    for height, width in itertools.product(range(1, 41), repeat=2):
        split = spatial_split(mesh, height, width)
        assert height % split.height_ways == 0
        assert width % split.width_ways == 0
        assert split.height_ways * split.width_ways == best_possible(layout, height, width)
        used = split.height_axes + split.width_axes
        assert len(set(used)) == len(used)
        assert set(used) <= set(AXES)


def test_borders_are_the_neighbours(devices):
    """Two ways down and four across; beyond the picture is zero, corners included."""
    mesh = make_mesh(parse_layout("dp2-sp2-tp2"), devices)
    split = spatial_split(mesh, 6, 4)
    assert (split.height_ways, split.width_ways) == (2, 4)
    x = jnp.arange(2 * 6 * 4 * 1, dtype=jnp.float32).reshape(2, 6, 4, 1) + 1

    def padded(x):
        return split.pad_rows(split.pad_columns(x, 1, 1), 1, 1)

    parts = jax.jit(
        jax.shard_map(
            padded, mesh=mesh, in_specs=split.spec(4), out_specs=split.spec(4), check_vma=False
        )
    )(x)  # each device's part with its border, one after another
    whole = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    for row, column in itertools.product(range(2), range(4)):
        part = np.asarray(parts)[:, row * 5 : row * 5 + 5, column * 3 : column * 3 + 3]
        expected = whole[:, row * 3 : row * 3 + 5, column : column + 3]
        np.testing.assert_array_equal(part, expected)
