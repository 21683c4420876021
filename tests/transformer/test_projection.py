"""A projection with its norms in one pass: against float64, on layouts, its gradient, its bytes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerances import PARITY, relative_error
from tests.transformer.test_norms import exact as exact_layer_norm
from wan_tpu.attention.flash_blocks import block_limits
from wan_tpu.planner.compile import slice_devices
from wan_tpu.planner.hardware import find_slice
from wan_tpu.planner.program import read_program
from wan_tpu.sharding.layout import Layout, parse_layout
from wan_tpu.sharding.mesh import make_mesh, named
from wan_tpu.stage import Stage, abstract
from wan_tpu.transformer import projection_kernel
from wan_tpu.transformer.norms import Norm
from wan_tpu.transformer.projection import (
    HeadNorm,
    Projection,
    project,
    project_groups,
)
from wan_tpu.transformer.projection_kernel import fitting_block
from wan_tpu.transformer.rotary import rotary_tables

HEADS, HEAD_DIM, TOKENS, DIM = 6, 16, 88, 48
REAL = (HEADS - 1) * HEAD_DIM
"""The last head is padding."""


def make(*, rows=1, kind="rotated", dtype=np.float32):
    """Tokens, a layer norm, a linear, and what is done to heads."""
    random = np.random.default_rng(0)
    x = random.standard_normal((2, TOKENS, DIM), np.float32)
    scale, shift = random.standard_normal((2, 2, rows, DIM), np.float32)
    norm = Norm(scale=jnp.asarray(1 + scale), shift=jnp.asarray(shift), eps=1e-6, first_tokens=19)
    weight = random.standard_normal((HEADS * HEAD_DIM, DIM), np.float32) / DIM**0.5
    bias, of_heads = random.standard_normal((2, HEADS * HEAD_DIM), np.float32)
    weight[REAL:], bias[REAL:] = 0, 0
    x, weight, bias, of_heads = (jnp.asarray(a, dtype) for a in (x, weight, bias, of_heads))
    tables = rotary_tables((2, 4, 11), HEAD_DIM, TOKENS) if kind == "rotated" else None
    heads = None if kind == "plain" else HeadNorm(of_heads, tables)
    return x, norm, weight, bias, heads


def exact(x, norm, weight, bias, heads, groups):
    """In float64: [groups, batch, tokens, channels of a group]."""
    x, weight, bias = (np.asarray(a, np.float64) for a in (x, weight, bias))
    product = (x if norm is None else exact_layer_norm(x, norm)) @ weight.T + bias
    if heads is not None:
        mean_square = (product**2).sum(-1, keepdims=True) / REAL
        product = product / np.sqrt(mean_square + 1e-6) * np.asarray(heads.weight, np.float64)
    if heads is not None and heads.tables is not None:
        cos, sin = (np.asarray(t, np.float64)[:, None] for t in heads.tables)
        split = product.reshape(*product.shape[:2], HEADS, HEAD_DIM)
        product = (split * cos + np.roll(split, HEAD_DIM // 2, -1) * sin).reshape(product.shape)
    return np.stack(np.split(product, groups, axis=-1))


def where(text, devices, *, way="ulysses", grouped=True):
    layout = parse_layout(text, sequence_parallel=way)
    mesh = make_mesh(layout, devices[: layout.num_devices])
    return Projection(
        head_dim=HEAD_DIM, real_channels=REAL, head_eps=1e-6, mesh=mesh, layout=layout,
        grouped=grouped,
    )  # fmt: skip


def leaves(x, norm, weight, bias, heads):
    """The arrays of `make`."""
    return x, norm.scale, norm.shift, weight, bias, heads


def of_arrays(projection, norm):
    """`project` as a function of these."""

    def function(x, scale, shift, weight, bias, heads):
        vectors = dataclasses.replace(norm, scale=scale, shift=shift)
        return project(x, vectors, weight, bias, heads, projection=projection)

    return function


@pytest.fixture
def small_blocks(monkeypatch):
    """Three blocks of a device's tokens, and three stretches of two heads."""
    monkeypatch.setattr(projection_kernel, "BLOCK_TOKENS", (32,))
    monkeypatch.setattr(projection_kernel, "STRETCH", 2 * HEAD_DIM)


@pytest.mark.parametrize(
    ("text", "way", "rows", "kind", "dtype"),
    [
        ("single", "ulysses", 1, "rotated", np.float32),
        ("sp2", "ulysses", 2, "rotated", np.float32),  # groups of three heads, stretches of two
        ("dp2-sp2", "ulysses", 1, "plain", np.float32),
        ("dp2-sp2", "allgather", 2, "rotated", jnp.bfloat16),
        ("sp2", "ulysses", 1, "normed", np.float32),
    ],
)
@pytest.mark.usefixtures("small_blocks")
def test_is_exact(text, way, rows, kind, dtype, devices):
    """Red when the mean counts the padding head, a block meets another's sums or tables, the last
    tokens of a block are not normalised, heads change groups, or a sample takes another's vectors.

    bfloat16: 2e-2, for normalised tokens, the product, the normalised and the rotated heads are
    each rounded to 8 bits, 2^-8 = 4e-3.
    """
    arrays = make(rows=rows, kind=kind, dtype=dtype)
    projection = where(text, devices, way=way, grouped=kind != "normed")
    assert projection.block(arrays[0], arrays[2].shape[0]) == 32
    out = jax.jit(of_arrays(projection, arrays[1]))(*leaves(*arrays))
    assert out.dtype == arrays[0].dtype
    expected = exact(*arrays, projection.groups)
    assert relative_error(out, expected) < (PARITY if dtype == np.float32 else 2e-2)


@pytest.mark.usefixtures("small_blocks")
def test_without_a_layer_norm(devices):
    """Models without cross-attention's."""
    x, _, weight, bias, heads = make(kind="normed")
    projection = where("single", devices, grouped=False)
    run = jax.jit(lambda *arrays: project(arrays[0], None, *arrays[1:], projection=projection))
    out = run(x, weight, bias, heads)
    assert relative_error(out, exact(x, None, weight, bias, heads, 1)) < PARITY


@pytest.mark.usefixtures("small_blocks")
def test_gradient_is_that_of_plain_jax_on_one_device(devices):
    """Red when one of the arrays has no gradient, or a sum over the mesh is taken twice."""
    x, norm, weight, bias, heads = make(rows=2)
    assert heads is not None
    assert heads.tables is not None
    tables, projection = heads.tables, where("dp2-sp2", devices)
    d_out = np.random.default_rng(1).standard_normal((2, 2, TOKENS, HEADS * HEAD_DIM // 2))
    d_out = jnp.asarray(d_out, jnp.float32)

    def gradients(function):
        arrays = (x, norm.scale, norm.shift, weight, bias, heads.weight)
        return jax.jit(lambda *a: jax.vjp(function, *a)[1](d_out))(*arrays)

    def fused(x, scale, shift, weight, bias, of_heads):
        of_heads = HeadNorm(of_heads, tables)
        return of_arrays(projection, norm)(x, scale, shift, weight, bias, of_heads)

    def plain(x, scale, shift, weight, bias, of_heads):
        is_first = jnp.arange(TOKENS)[:, None] < norm.first_tokens
        scale, shift = (jnp.where(is_first, a[:, :1], a[:, 1:]) for a in (scale, shift))
        centred = x - x.mean(-1, keepdims=True)
        x = centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6) * scale + shift
        product = x @ weight.T + bias
        mean_square = jnp.square(product).sum(-1, keepdims=True) / REAL
        product = product / jnp.sqrt(mean_square + 1e-6) * of_heads
        split = product.reshape(2, TOKENS, HEADS, HEAD_DIM)
        cos, sin = (t[:, None] for t in tables)
        rotated = (split * cos + jnp.roll(split, HEAD_DIM // 2, -1) * sin).reshape(product.shape)
        return jnp.stack(jnp.split(rotated, 2, axis=-1))

    for actual, expected in zip(gradients(fused), gradients(plain), strict=True):
        assert relative_error(actual, expected) < PARITY


def test_of_groups_needs_no_order(devices):
    """Red when a group meets another's columns."""
    x, _, _, bias, _ = make()
    weight = jnp.asarray(np.random.default_rng(0).standard_normal((96, DIM), np.float32))
    groups = jnp.stack(jnp.split(x, 3, axis=-1))
    out = project_groups(groups, weight, bias)
    assert relative_error(out, np.asarray(x, np.float64) @ weight.T + bias) < PARITY


@pytest.mark.parametrize(
    ("kind", "tokens", "dim", "itemsize", "block"),
    [
        ("TPU v6 lite", 18_944, 5120, 2, 512),  # 14B
        ("TPU v6 lite", 18_944, 5120, 4, 0),
        ("TPU v6 lite", 6820, 3072, 2, 512),  # 5B
        ("TPU v6 lite", 40, 5120, 2, 48),
        ("TPU7x", 18_944, 5120, 2, 0),
        ("TPU7x", 6820, 3072, 2, 512),
        ("TPU7x", 8192, 1536, 2, 512),  # 1.3B
        ("TPU7x", 18_944, 4096, 2, 256),
    ],
)
def test_where_the_weights_fit(kind, tokens, dim, itemsize, block):
    """Red when a kernel is made that its chip has no room for."""
    limit = block_limits(kind).vmem_bytes
    assert fitting_block(tokens, dim, dim, itemsize, limit) == block


def test_heads_over_tp_are_another_way(devices):
    x, _, weight, _, _ = make()
    assert where("tp2", devices).block(x, weight.shape[0]) == 0


def test_compiled_for_a_v6e_tokens_pass_memory_once():
    """The 14B's queries and values of 1,184 tokens on the real compiler: a read and a write each.

    Red when weights do not fit beside the tokens, or when something is put in order afterwards.
    """
    layout = Layout(sp=4)
    mesh = make_mesh(layout, slice_devices(find_slice("v6e-4")))
    tokens, dim = 1184, 5120
    projection = Projection(
        head_dim=128, real_channels=dim, head_eps=1e-6, mesh=mesh, layout=layout, grouped=True
    )

    def both(x, vectors, weight, bias, of_heads, table):
        norm = Norm(scale=vectors, shift=vectors, eps=1e-6)
        heads = HeadNorm(of_heads, (table, table))
        made = functools.partial(project, projection=projection)
        return made(x, norm, weight, bias, heads), made(x, norm, weight, bias, None)

    whole, ways = named(mesh), layout.sp
    arguments = (
        abstract((1, tokens * ways, dim), jnp.bfloat16, named(mesh, "dp", "sp", None)),
        abstract((1, 1, dim), jnp.float32, whole),
        abstract((dim, dim), jnp.bfloat16, whole),
        abstract((dim,), jnp.bfloat16, whole),
        abstract((dim,), jnp.bfloat16, whole),
        abstract((tokens * ways, 128), jnp.float32, named(mesh, "sp", None)),
    )
    stage = Stage(name="projection", function=both, arguments=arguments, mesh=mesh)
    costs = read_program(stage.compile().as_text())
    kernels = [o for o in costs.operations if o.kind == "kernel"]
    passes, weights = 2 * tokens * dim * 2, dim * dim * 2
    assert [o.flops for o in kernels] == [2 * tokens * dim * dim] * 2
    assert not any(o.attention for o in kernels)
    moved = sum(o.hbm_bytes for o in costs.operations)
    assert 2 * passes < moved < 2 * passes + 2 * weights + 0.1 * passes
