"""Layer norm in one pass: against float64, on layouts, with a large mean, its gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerances import PARITY, relative_error
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh, named
from wan_tpu.transformer import norms
from wan_tpu.transformer.norms import Norm, layer_norm, layer_norm_in_one_pass

TOKENS, DIM, FIRST = 88, 64, 19


def exact(x, norm):
    """In float64."""
    x, scale, shift = (np.asarray(a, np.float64) for a in (x, norm.scale, norm.shift))
    if scale.shape[1] == 2:
        is_first = (np.arange(x.shape[1]) < norm.first_tokens)[:, None]
        scale, shift = (np.where(is_first, a[:, :1], a[:, 1:]) for a in (scale, shift))
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + norm.eps)
    return normed * scale + shift


def make(rows, samples, *, mean=0.0, dtype=np.float32):
    random = np.random.default_rng(0)
    x = jnp.asarray(mean + random.standard_normal((2, TOKENS, DIM), np.float32), dtype)
    scale, shift = random.standard_normal((2, samples, rows, DIM), np.float32)
    return x, Norm(
        scale=jnp.asarray(1 + scale), shift=jnp.asarray(shift), eps=1e-6, first_tokens=FIRST
    )


def run(x, norm, text, devices):
    layout = parse_layout(text)
    mesh = make_mesh(layout, devices[: layout.num_devices])
    in_one_pass = jax.jit(functools.partial(layer_norm_in_one_pass, norm=norm, mesh=mesh))
    return in_one_pass(jax.device_put(x, named(mesh, "dp", "sp", None)))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("text", "rows", "samples"),
    [("single", 1, 1), ("sp8", 2, 1), ("dp2-sp2", 2, 2), ("dp2-sp4", 1, 2)],
)
def test_is_exact(text, rows, samples, dtype, devices, monkeypatch):
    """Blocks of 32 tokens: the last one is not full, and one holds tokens of both rows.

    Red when a shard or a block takes its own first tokens for the first frame's, or every sample
    the first one's vectors. bfloat16: the result is rounded once, 2^-8.
    """
    monkeypatch.setattr(norms, "BLOCK_TOKENS", 32)
    x, norm = make(rows, samples, dtype=dtype)
    out = run(x, norm, text, devices)
    assert out.dtype == x.dtype
    expected = exact(x, norm)
    assert relative_error(out, expected) < (PARITY if dtype == np.float32 else 2**-8)
    assert relative_error(layer_norm(x, norm), out) < (PARITY if dtype == np.float32 else 2**-8)


def test_a_large_mean_spoils_no_variance(devices):
    """Red when the variance is the mean of squares less the mean's: 1000^2 has no digit left.

    1e-4: the inputs' own last digits, 1000 / 2^24, beside a deviation of 1.
    """
    x, norm = make(1, 1, mean=1000.0)
    assert relative_error(run(x, norm, "single", devices), exact(x, norm)) < 1e-4


def test_gradient_is_that_of_the_steps(devices):
    """Red when the derivative of the scale, the shift or the tokens is left out."""
    x, norm = make(2, 1)
    mesh = make_mesh(parse_layout("dp2-sp2"), devices[:4])
    d_out = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape, np.float32))

    def gradients(function):
        def of(x, scale, shift):
            vectors = Norm(scale=scale, shift=shift, eps=norm.eps, first_tokens=FIRST)
            return function(x, vectors)

        arrays = (x, norm.scale, norm.shift)
        return jax.jit(lambda *a: jax.vjp(of, *a)[1](d_out))(*arrays)

    steps = gradients(layer_norm)
    fused = gradients(functools.partial(layer_norm_in_one_pass, mesh=mesh))
    for actual, expected in zip(fused, steps, strict=True):
        assert relative_error(actual, expected) < PARITY
