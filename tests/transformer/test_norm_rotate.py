"""One pass over memory gives what norm, rotation and grouping give one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerances import PARITY, relative_error
from wan_tpu.attention.sequence_parallel import group_heads
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh, named
from wan_tpu.transformer.norm_rotate import norm_rotate
from wan_tpu.transformer.processors import rms_norm_across_heads, split_heads
from wan_tpu.transformer.rotary import rotary_tables, rotate

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
