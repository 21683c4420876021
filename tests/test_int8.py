"""Linears of int8: the arithmetic by hand, whatever an input holds, the same bits when split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from wan_tpu.checkpoints.quantized import quantize_rows, row_scales
from wan_tpu.int8 import int8_linear, quantize_tokens
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh
from wan_tpu.torch_bridge import call_module
from wan_tpu.torch_module import named_linear, quantize_linears, replace_linears

ROUNDING = 1 / 254
"""Half a step, of a largest magnitude of 127 steps: what one number may be off."""


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def quantized(matrix: np.ndarray) -> tuple[jax.Array, jax.Array]:
    scales = row_scales(matrix)
    return jnp.asarray(quantize_rows(matrix, scales)), jnp.asarray(scales)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_product_is_that_of_the_whole_numbers(dtype):
    """By hand in float64, rounded once at the end: red when something is rounded on the way."""
    x = jnp.asarray(drawn(2, 5, 64), dtype)
    weight, scales = quantized(drawn(48, 64, seed=1))
    bias = jnp.asarray(drawn(48, seed=2), dtype)
    given = np.asarray(x, np.float64)
    largest = np.abs(given).max(-1, keepdims=True)
    whole = np.round(given * np.float32(127 / largest))
    assert np.abs(whole).max() == 127
    expected = (whole @ np.asarray(weight, np.float64).T) * (largest / 127)
    expected = expected * np.asarray(scales, np.float64) + np.asarray(bias, np.float64)
    ours = int8_linear(x, weight, scales, bias)
    assert ours.dtype == x.dtype
    step = {"float32": 2**-22, "bfloat16": 2**-8}[dtype]
    np.testing.assert_allclose(np.asarray(ours, np.float64), expected, rtol=step, atol=1e-6)


def test_each_output_channel_is_as_fine_as_its_own_row():
    """Red with one scale for the whole matrix: rows of a thousandth would be all zero."""
    matrix = drawn(32, 256) * np.logspace(-3, 0, 32, dtype=np.float32)[:, None]
    x = drawn(64, 256, seed=1)
    ours = np.asarray(int8_linear(jnp.asarray(x), *quantized(matrix)))
    exact = x @ matrix.T
    error = np.linalg.norm(ours - exact, axis=0) / np.linalg.norm(exact, axis=0)
    assert error.max() < 0.015, error


def test_each_token_is_as_fine_as_its_own_largest():
    x = drawn(6, 64) * np.logspace(-12, 3, 6, dtype=np.float32)[:, None]
    whole, scale = quantize_tokens(jnp.asarray(x))
    error = np.abs(np.asarray(whole) * np.asarray(scale) - x).max(1) / np.abs(x).max(1)
    assert error.max() <= ROUNDING * 1.001
    assert np.abs(np.asarray(whole)).max(1).tolist() == [127] * 6


def test_zeros_give_the_bias_and_what_is_not_finite_stays_in_its_token():
    """Padding is zero; a model that gives NaN must be found out (`BadNumbersError`)."""
    x = drawn(4, 64)
    x[0], x[1, 3], x[2, 5] = 0, np.nan, np.inf
    matrix = drawn(8, 64, seed=1)
    matrix[3] = 0
    bias = jnp.asarray(drawn(8, seed=2))
    ours = np.asarray(int8_linear(jnp.asarray(x), *quantized(matrix), bias))
    np.testing.assert_array_equal(ours[0], bias)
    assert not np.isfinite(ours[1:3]).any()
    assert np.isfinite(ours[3]).all()
    assert ours[3, 3] == bias[3]


@pytest.mark.parametrize("layout", ["tp8", "dp2-sp2-tp2"])
def test_a_split_input_gives_the_bits_of_one_device(layout, devices):
    """Red when a part of a token goes by its own largest magnitude, or the parts' products are
    added up after they were scaled. One token's largest is in the last part, another's in the
    first."""
    x, matrix = drawn(2, 16, 128), drawn(24, 128, seed=1)
    x[0, 0, -1], x[1, 3, 0] = 30, -40
    weight, scales = quantized(matrix)
    one = jax.jit(int8_linear)(jnp.asarray(x), weight, scales)
    mesh = make_mesh(parse_layout(layout), devices)
    placed = [
        jax.device_put(array, NamedSharding(mesh, spec))
        for array, spec in ((x, P("dp", "sp", "tp")), (weight, P(None, "tp")), (scales, P()))
    ]
    many = jax.jit(int8_linear, out_shardings=NamedSharding(mesh, P("dp", ("sp", "tp"))))(*placed)
    np.testing.assert_array_equal(one, many)


def test_a_linear_of_a_template_takes_its_scale_with_it():
    """And one that is called by its name does; replaced again it stays what it is."""
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Linear(64, 32))
    matrix, bias = (p.detach().numpy() for p in block.parameters())
    weight, scales = quantized(matrix)
    params = {"0.weight": weight, "0.bias": jnp.asarray(bias), "0.weight_scale": scales}
    replace_linears(block)
    quantize_linears(block)
    replace_linears(block)
    dtypes = {name: str(p.dtype) for name, p in block.named_parameters()}
    assert dtypes == {
        "0.weight": "torch.int8", "0.bias": "torch.float32", "0.weight_scale": "torch.float32"
    }  # fmt: skip
    x = jnp.asarray(drawn(3, 64))
    expected = int8_linear(x, weight, scales, jnp.asarray(bias))
    np.testing.assert_array_equal(call_module(block, params, x), expected)
    np.testing.assert_array_equal(named_linear(x, params, "0"), expected)
