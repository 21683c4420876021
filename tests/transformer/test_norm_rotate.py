"""One pass over memory gives what norm, rotation and grouping give one after the other; so does the
gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerances import PARITY, relative_error
from wan_tpu.attention.sequence_parallel import group_heads
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh, named
from wan_tpu.transformer.norm_rotate import norm_rotate
from wan_tpu.transformer.norms import rms_norm_across_heads
from wan_tpu.transformer.rotary import rotary_tables, rotate, split_heads

HEADS, HEAD_DIM, TOKENS = 8, 32, 88


def in_steps(x, weight, cos, sin, *, dim, mesh, layout):
    normed = rms_norm_across_heads(x, weight, dim, 1e-6).astype(x.dtype)
    rotated = rotate(split_heads(normed, HEAD_DIM), cos, sin).reshape(x.shape)
    return group_heads(rotated, mesh=mesh, layout=layout)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("way", ["ulysses", "allgather"])
@pytest.mark.parametrize("text", ["single", "sp8", "tp8", "dp2-sp2-tp2"])
def test_is_what_the_steps_give(text, way, dtype, devices):
    """Red when the mean is a tp shard's own, heads roll the wrong way, or groups change places.

    The last head is padding: zeros, which the mean must not count. bfloat16: the kernel's sums are
    float32 alike, so the two differ where a last bit falls, 2^-8, at most.
    """
    layout = parse_layout(text, sequence_parallel=way)
    mesh = make_mesh(layout, devices[: layout.num_devices])
    random = np.random.default_rng(0)
    x = random.standard_normal((2, TOKENS, HEADS * HEAD_DIM), np.float32)
    x[..., -HEAD_DIM:] = 0
    weight = random.standard_normal(HEADS * HEAD_DIM, np.float32)
    x, weight = (jnp.asarray(a, dtype) for a in (x, weight))
    x = jax.device_put(x, named(mesh, "dp", "sp", "tp"))
    dim = (HEADS - 1) * HEAD_DIM

    def both(x, weight):
        tables = rotary_tables((2, 4, 11), HEAD_DIM, TOKENS)
        where = {"mesh": mesh, "layout": layout}
        fused = norm_rotate(x, weight, *tables, dim=dim, eps=1e-6, **where)
        return fused, in_steps(x, weight, *tables, dim=dim, **where)

    fused, expected = jax.jit(both)(x, weight)
    assert fused.dtype == x.dtype
    assert fused.sharding.is_equivalent_to(expected.sharding, 4)
    assert relative_error(fused, expected) < (PARITY if dtype == np.float32 else 2**-8)


@pytest.fixture(scope="module")
def expected_gradients():
    """Of the steps in float32, on one device, by JAX: of x and of the weight."""

    def gradients(x, weight, d_out, dim, tables):
        layout = parse_layout("single")
        mesh = make_mesh(layout, jax.devices()[:1])

        @jax.jit
        def run(x, weight, d_out):
            steps = functools.partial(in_steps, dim=dim, mesh=mesh, layout=layout)
            return jax.vjp(lambda *arrays: steps(*arrays, *tables), x, weight)[1](d_out[None])

        return run(*(np.asarray(a, np.float32) for a in (x, weight, d_out)))

    return gradients


@pytest.mark.parametrize(
    ("text", "way", "dtype"),
    [
        ("single", "ulysses", np.float32),
        ("dp2-sp2-tp2", "ulysses", np.float32),
        ("dp2-sp2-tp2", "allgather", jnp.bfloat16),
    ],
)
def test_gradient_is_that_of_the_steps_on_one_device(text, way, dtype, devices, expected_gradients):
    """The last head is padding. Red, by the size of an axis, when a sum over the mesh is taken once
    too often or left out; when the mean counts the padding; when rows beyond the end add to the
    weight's gradient; when the roll goes unrolled.

    bfloat16: the gradients themselves are rounded, 2^-8 of the largest at most; the weight's once.
    """
    layout = parse_layout(text, sequence_parallel=way)
    mesh = make_mesh(layout, devices[: layout.num_devices])
    random = np.random.default_rng(0)
    x, d_out = random.standard_normal((2, 2, TOKENS, HEADS * HEAD_DIM), np.float32)
    x[..., -HEAD_DIM:] = 0
    weight = random.standard_normal(HEADS * HEAD_DIM, np.float32)
    weight[-HEAD_DIM:] = 0
    x, d_out, weight = (jnp.asarray(a, dtype) for a in (x, d_out, weight))
    dim = (HEADS - 1) * HEAD_DIM
    tables = rotary_tables((2, 4, 11), HEAD_DIM, TOKENS)

    @jax.jit
    def gradients(x, weight, d_out):
        where = {"dim": dim, "eps": 1e-6, "mesh": mesh, "layout": layout}
        fused = functools.partial(norm_rotate, **where)
        backward = jax.vjp(lambda *arrays: fused(*arrays, *tables), x, weight)[1]
        return backward(group_heads(d_out, mesh=mesh, layout=layout))

    split = named(mesh, "dp", "sp", "tp")
    d_x, d_weight = gradients(jax.device_put(x, split), weight, jax.device_put(d_out, split))
    assert (d_x.dtype, d_weight.dtype) == (x.dtype, weight.dtype)
    expected = expected_gradients(x, weight, d_out, dim, tables)
    tolerance = PARITY if dtype == np.float32 else 2**-8
    for name, actual, exact in zip(("x", "weight"), (d_x, d_weight), expected, strict=True):
        assert relative_error(actual, exact) < tolerance, name
    for padding in (d_x[..., -HEAD_DIM:], d_weight[-HEAD_DIM:]):
        assert not np.asarray(padding, np.float32).any()
