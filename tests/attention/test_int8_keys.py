"""Keys of int8: what their mean and scale are taken of, on one device and on layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wan_tpu.attention.int8_keys import quantize_grouped, quantize_keys
from wan_tpu.attention.sequence_parallel import group_heads, ungroup_heads
from wan_tpu.sharding.layout import parse_layout
from wan_tpu.sharding.mesh import make_mesh, named

BATCH, KEYS, REAL, HEADS, FEATURES = 2, 24, 21, 3, 16


quantized_to = jax.jit(quantize_keys, static_argnames="num_keys")


def quantize(keys: np.ndarray, num_keys: int = REAL) -> tuple[np.ndarray, np.ndarray]:
    """The whole numbers, as float32, and the scale."""
    quantized = quantized_to(keys, num_keys=num_keys)
    assert quantized.values.dtype == jnp.int8
    assert quantized.scale.shape == (keys.shape[0], keys.shape[2])
    return np.asarray(quantized.values, np.float32), np.asarray(quantized.scale)


@pytest.fixture(scope="module")
def keys() -> np.ndarray:
    """Keys of which each head has its own size and a part that all of its keys share."""
    random = np.random.default_rng(0)
    key = random.standard_normal((BATCH, KEYS, HEADS, FEATURES), np.float32)
    key += 5 * random.standard_normal((BATCH, 1, HEADS, FEATURES), np.float32)
    return key * np.asarray([1, 10, 0.1], np.float32)[:, None]


def test_real_keys_less_their_mean_come_back_within_half_a_unit(keys: np.ndarray):
    values, scale = quantize(keys)
    unit = scale[:, None, :, None]
    mean = keys[:, :REAL].mean(1, keepdims=True).astype(jnp.bfloat16).astype(np.float32)
    assert np.all(np.abs(values * unit - (keys - mean))[:, :REAL] <= 0.5001 * unit)
    # The whole range is used: the largest magnitude of every head is 127.
    np.testing.assert_array_equal(np.abs(values).max((1, 3)), 127)


def test_padding_is_in_neither_mean_nor_scale_and_becomes_zero(keys: np.ndarray):
    expected, spoilt = keys.copy(), keys.copy()
    expected[:, REAL:], spoilt[:, REAL:] = 0, np.nan
    for one, other in zip(quantize(spoilt), quantize(expected), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not quantize(spoilt)[0][:, REAL:].any()


def test_a_bad_number_in_a_real_key_is_not_hidden(keys: np.ndarray):
    spoilt = keys.copy()
    spoilt[1, 3, 2, 5] = np.nan
    np.testing.assert_array_equal(
        np.isnan(quantize(spoilt)[1]), [[False] * 3, [False, False, True]]
    )


def test_a_head_of_padding_is_zero(keys: np.ndarray):
    values, scale = quantize(keys * np.asarray([1, 0, 1], np.float32)[:, None])
    assert not values[:, :, 1].any()
    assert np.isfinite(scale).all()


@pytest.mark.parametrize("text", ["sp8 allgather", "sp4-tp2", "dp2-sp2-tp2"])
def test_keys_are_the_same_whole_numbers_on_every_layout(text, devices):
    """Whatever order a layout adds the mean up in; no mean here is half way between two numbers of
    bfloat16. Red where the mean is not rounded, or is a shard's own."""
    layout = parse_layout(text)
    mesh = make_mesh(layout, devices[: layout.num_devices])
    key = np.random.default_rng(4).standard_normal((2, 104, 8, FEATURES), np.float32) + 3
    expected, expected_scale = quantize(key, 101)
    joined = jax.device_put(key.reshape(2, 104, -1), named(mesh, "dp", "sp", "tp"))

    @jax.jit
    def on_mesh(joined):
        grouped = group_heads(joined, mesh=mesh, layout=layout)
        quantized = quantize_grouped(grouped, head_dim=FEATURES, num_keys=101)
        values = quantized.values.astype(jnp.float32)
        return ungroup_heads(values, mesh=mesh), quantized.scale

    values, scale = on_mesh(joined)
    np.testing.assert_array_equal(np.asarray(values).reshape(key.shape), expected)
    groups, tp = len(scale), layout.tp
    scale = np.asarray(scale).reshape(groups, 2, tp, -1).transpose(1, 2, 0, 3).reshape(2, 8)
    np.testing.assert_array_equal(scale, expected_scale)


def test_less_the_mean_attention_is_nearer_to_the_exact(keys: np.ndarray, exact):
    """What all keys share takes 8 bits from what differs, unless it is taken off first."""
    random = np.random.default_rng(1)
    query, value = (random.standard_normal(keys.shape, np.float32) for _ in range(2))
    query /= np.asarray([1, 10, 0.1], np.float32)[:, None]
    values, scale = quantize(keys, KEYS)
    less_mean = values * scale[:, None, :, None]
    largest = np.abs(keys).max((1, 3), keepdims=True) / 127
    as_it_is = np.round(keys / largest) * largest
    expected = exact(query, keys, value)
    errors = [
        np.linalg.norm(exact(query, key, value) - expected) / np.linalg.norm(expected)
        for key in (less_mean, as_it_is)
    ]
    assert errors[0] < 0.02
    assert errors[0] < errors[1] / 2
