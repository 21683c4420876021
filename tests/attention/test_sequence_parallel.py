"""Every layout gives what one device gives, padding never enters, and collectives are as few."""

import collections as collections_module
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerances import INT8_ATTENTION_LAYOUT, PARITY, relative_error
from wan_tpu.attention import sequence_parallel
from wan_tpu.attention.sequence_parallel import (
    cross_attend,
    group_heads,
    padded_tokens,
    sharded_attend,
    ungroup_heads,
)
from wan_tpu.errors import UnknownNameError
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh, named

COLLECTIVES = ("all-to-all", "all-gather", "all-reduce", "reduce-scatter", "collective-permute")
LAYOUTS = ["dp2", "sp8", "tp8", "dp2-sp2-tp2", "sp4-tp2", "dp2-sp4"]
WAYS = pytest.mark.parametrize("way", ["ulysses", "allgather", "ring"])


def make(text, way, devices):
    layout = parse_layout(text, sequence_parallel=way)
    return layout, make_mesh(layout, devices[: layout.num_devices])


def place(arrays, mesh, *spec):
    return [jax.device_put(x, named(mesh, *spec)) for x in arrays]


def split_self(arrays, layout, mesh, implementation, num_keys):
    """Self-attention of arrays placed on the mesh, as (result, compiled program's text)."""
    shape = arrays[0].shape
    arrays = place(map(merge_heads, arrays), mesh, "dp", "sp", "tp")

    def attention(*arrays):
        attended = sharded_attend(
            *(group_heads(x, mesh=mesh, layout=layout) for x in arrays),
            head_dim=shape[-1],
            mesh=mesh,
            layout=layout,
            implementation=implementation,
            num_keys=num_keys,
        )
        return ungroup_heads(attended, mesh=mesh).reshape(shape)

    compiled = jax.jit(attention).lower(*arrays).compile()
    return compiled(*arrays), compiled.as_text()


def merge_heads(x):
    """[batch, tokens, heads, head_dim] -> [batch, tokens, heads * head_dim]."""
    return x.reshape(*x.shape[:2], -1)


def collectives(program):
    return {name for name in COLLECTIVES if re.search(rf" {name}(-start)?\(", program)}


@WAYS
@pytest.mark.parametrize("text", LAYOUTS)
def test_every_layout_equals_one_device(text, way, devices, make_qkv, spoil, exact):
    """88 tokens of which 83 are real; the rest, of queries too, holds garbage.

    Red when heads come back in another order (`reshape(batch, tokens, channels // groups, groups)`
    and its transpose in `group_heads`), when tokens do, or when `num_keys` is dropped. Tried:
    groups of heads in reverse (`ungroup_heads`) give 1.1 to 1.2 on each sp with ulysses,
    `num_keys` not passed on 9,316 on every layout, the larger logsumexp instead of their sum in
    `ring.merge` 0.7 to 2.7 on each sp with ring.
    """
    layout, mesh = make(text, way, devices)
    arrays = spoil(make_qkv(2, 88, 88, 8, 16), 83, 1e4)
    expected = exact(*(x[:, :83] for x in arrays))
    out, program = split_self(arrays, layout, mesh, "chunked", 83)
    assert out.sharding.is_equivalent_to(named(mesh, "dp", "sp", "tp"), 4)
    assert relative_error(out[:, :83], expected) < PARITY
    exchanged = {"ulysses": "all-to-all", "allgather": "all-gather", "ring": "collective-permute"}
    assert collectives(program) == ({exchanged[way]} if layout.sp > 1 else set())


MIXED = ["sp8 ulysses4", "sp8 ulysses2", "dp2-sp4 ulysses2", "sp4-tp2 ulysses2"]


@pytest.mark.parametrize("num_keys", [60, 83])
@pytest.mark.parametrize("text", MIXED)
def test_heads_are_traded_among_a_part_and_keys_gathered_over_the_rest(
    text, num_keys, devices, make_qkv, spoil, exact
):
    """Twelve heads, which eight shards do not divide. Of 60 real tokens the last shards hold none.

    Red when keys come in another order although padding is among them (`axis = 0` for all), or
    when others trade (`neighbours` for its transpose).
    """
    layout, mesh = make(text, "ulysses", devices)
    arrays = spoil(make_qkv(2, 88, 88, 12, 16), num_keys, 1e4)
    expected = exact(*(x[:, :num_keys] for x in arrays))
    out, program = split_self(arrays, layout, mesh, "chunked", num_keys)
    assert out.sharding.is_equivalent_to(named(mesh, "dp", "sp", "tp"), 4)
    assert relative_error(out[:, :num_keys], expected) < PARITY
    assert collectives(program) == {"all-to-all", "all-gather"}


@WAYS
def test_heads_keep_their_order(way, devices, make_qkv):
    """Each head's values are its number, so each head's result is: red for any wrong order."""
    layout, mesh = make("sp4-tp2", way, devices)
    query, key, value = make_qkv(1, 16, 16, 16, 8)
    value = np.broadcast_to(np.arange(16, dtype=np.float32)[:, None], value.shape)
    out, _ = split_self((query, key, value), layout, mesh, "reference", None)
    np.testing.assert_allclose(out, value, rtol=1e-6)


@WAYS
def test_tokens_keep_their_order(way, devices, make_qkv):
    """Each query finds the key of its own position: red when shards come back in another order."""
    layout, mesh = make("sp8", way, devices)
    _, _, value = make_qkv(1, 16, 16, 8, 16)
    own = np.broadcast_to(1000 * np.eye(16, dtype=np.float32)[:, None], value.shape)
    out, _ = split_self((own, own, value), layout, mesh, "reference", None)
    np.testing.assert_allclose(out, value, rtol=1e-6)


@pytest.mark.parametrize("way", ["allgather", "ring"])
def test_without_trading_heads_any_number_goes(way, devices, make_qkv, exact):
    """Three heads over eight token shards."""
    layout, mesh = make("sp8", way, devices)
    arrays = make_qkv(1, 24, 24, 3, 16)
    expected = exact(*arrays)
    out, _ = split_self(arrays, layout, mesh, "chunked", None)
    assert relative_error(out, expected) < PARITY


def test_ulysses_with_heads_that_were_not_padded_is_our_mistake(devices, make_qkv):
    layout, mesh = make("sp8", "ulysses", devices)
    with pytest.raises(AssertionError):
        split_self(make_qkv(1, 24, 24, 3, 16), layout, mesh, "chunked", None)


@WAYS
@pytest.mark.parametrize("kernel", ["splash", "flash"])
def test_the_kernels_inside_shard_map(kernel, way, devices, make_qkv, spoil, exact):
    """Interpreted, because the mesh is of CPUs; bfloat16 as on a TPU.

    2e-2: scaled keys (or queries), weights and results are each rounded to 8 bits.
    """
    layout, mesh = make("dp2-sp2-tp2", way, devices)
    arrays = spoil(make_qkv(2, 304, 304, 4, 16, dtype=jnp.bfloat16), 299, np.nan)
    expected = exact(*(x[:, :299] for x in arrays))
    out, _ = split_self(arrays, layout, mesh, kernel, 299)
    assert out.dtype == jnp.bfloat16
    assert relative_error(out[:, :299], expected) < 2e-2


def exchanged_dtypes(program):
    """Of each collective, how often it carries which numbers; of a tuple it is one."""
    found = re.findall(r"= \(?(\w+)\[\S* .*? ?(\S+?)(?:-start)?\(", program)
    return collections_module.Counter((name, dtype) for dtype, name in found if name in COLLECTIVES)


@pytest.fixture(scope="module")
def int8_of_one_device(make_qkv, devices):
    """Queries, keys with a common part, and values, 83 of 88 real; the result over them alone."""
    query, key, value = make_qkv(2, 88, 88, 4, 16)
    arrays = query, key + 4 * query[:1, :1], value
    layout, mesh = make("single", "ulysses", devices)
    real = [x[:, :83] for x in arrays]
    return arrays, split_self(real, layout, mesh, "flash-int8", None)[0]


@pytest.mark.parametrize(
    ("text", "exchanged"),
    [
        ("dp2-sp2-tp2", {("all-to-all", "s8"): 1, ("all-to-all", "f32"): 3}),
        (
            "sp4-tp2 ulysses2",
            {("all-to-all", "s8"): 1, ("all-to-all", "f32"): 3}
            | {("all-gather", "s8"): 1, ("all-gather", "f32"): 1},
        ),
        pytest.param(
            "dp2-sp2-tp2 allgather",
            {("all-gather", "s8"): 1, ("all-gather", "f32"): 1},
            marks=pytest.mark.slow,  # as ulysses' second way, above
        ),
        (
            "dp2-sp2-tp2 ring",
            {("collective-permute", "s8"): 1, ("collective-permute", "f32"): 1},
        ),
    ],
)
def test_keys_of_int8_travel_as_such(text, exchanged, devices, spoil, exact, int8_of_one_device):
    """Half the bytes of bfloat16; besides them a sum and maxima over sp, of a token's size.

    Red when keys are quantised after they travelled, when each shard has a mean or a scale of its
    own, or when a shard takes another one's heads' scale (0.45 with ulysses).
    """
    arrays, of_one_device = int8_of_one_device
    layout, mesh = make(text, "ulysses", devices)
    out, program = split_self(spoil(arrays, 83, np.nan), layout, mesh, "flash-int8", 83)
    assert exchanged_dtypes(program) == exchanged | {("all-reduce", "f32"): 2}
    assert relative_error(out[:, :83], of_one_device) < INT8_ATTENTION_LAYOUT
    assert relative_error(out[:, :83], exact(*(x[:, :83] for x in arrays))) < INT8_ATTENTION_LAYOUT


@pytest.mark.parametrize("implementation", ["chunked", "splash", "flash"])
@pytest.mark.parametrize("text", ["dp2-sp2-tp2", "sp8"])
def test_cross_attention_speaks_to_nobody(text, implementation, devices, make_qkv, exact):
    """257 keys, as an image has: one more than a tile, and what a kernel pads must be masked.

    Red when the keys are split over sp, which shows as all-gathers and wrong answers.
    """
    layout, mesh = make(text, "ulysses", devices)
    query, key, value = make_qkv(2, 88, 257, 8, 16)
    expected = exact(query, key, value)
    shape = query.shape
    query, key, value = (merge_heads(x)[None] for x in (query, key, value))
    arrays = place([query], mesh, None, "dp", "sp", "tp")
    arrays += place([key, value], mesh, None, "dp", None, "tp")

    def attention(*arrays):
        return cross_attend(
            *arrays, head_dim=16, mesh=mesh, layout=layout, implementation=implementation
        ).reshape(shape)

    compiled = jax.jit(attention).lower(*arrays).compile()
    assert relative_error(compiled(*arrays), expected) < PARITY
    assert collectives(compiled.as_text()) == set()


def test_a_mesh_of_another_layout_is_our_mistake(devices, make_qkv):
    layout, _ = make("sp8", "ulysses", devices)
    _, mesh = make("tp8", "ulysses", devices)
    with pytest.raises(AssertionError):
        split_self(make_qkv(1, 8, 8, 8, 8), layout, mesh, "chunked", None)


def test_unknown_name(devices, make_qkv):
    layout, mesh = make("sp8", "ulysses", devices)
    with pytest.raises(UnknownNameError, match="flash9"):
        split_self(make_qkv(1, 8, 8, 8, 8), layout, mesh, "flash9", None)


@pytest.mark.parametrize(
    ("tokens", "implementation", "expected"),
    [
        (75_600, "chunked", 75_600),
        (75_600, "splash", 75_776),  # a multiple of the tile, 2,048
        (75_600, "flash", 75_776),  # 37 x 256 on each of 8 shards
        (75_600, "flash-int8", 75_776),  # as for the exact steps between
        (80, "flash", 80),  # 2,048 would add too much
        (80, "splash", 80),  # the tile, 128, would add 60%
        (83, "splash", 88),
    ],
)
def test_padded_tokens(tokens, implementation, expected, devices):
    """Red when short videos are padded to a tile."""
    layout, mesh = make("sp8", "ulysses", devices)
    found = padded_tokens(tokens, 8, mesh=mesh, layout=layout, implementation=implementation)
    assert found == expected


def test_every_way_of_a_layout_is_implemented():
    """Red when a sequence-parallel name is added to layouts alone."""
    from wan_tpu.sharding.layout import SEQUENCE_PARALLEL

    assert set(sequence_parallel._SELF_ATTENTION) == set(SEQUENCE_PARALLEL)
