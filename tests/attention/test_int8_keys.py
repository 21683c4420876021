"""Keys of int8: what their mean and scale are taken of, and that softmax does not see the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wan_tpu.attention.int8_keys import quantize_grouped, quantize_keys
from wan_tpu.attention.reference import reference_attention

BATCH, KEYS, REAL, HEADS, FEATURES = 2, 24, 21, 3, 16


@pytest.fixture(scope="module")
def keys() -> jax.Array:
    """Keys of which each head has its own size and a part that all of its keys share."""
    drawn, common = jax.random.split(jax.random.key(0))
    key = jax.random.normal(drawn, (BATCH, KEYS, HEADS, FEATURES))
    key += 5 * jax.random.normal(common, (BATCH, 1, HEADS, FEATURES))
    return key * jnp.asarray([1.0, 10.0, 0.1])[:, None]


def test_real_keys_less_their_mean_come_back_within_half_a_unit(keys: jax.Array):
    quantized = quantize_keys(keys, REAL)
    assert quantized.values.dtype == jnp.int8
    assert quantized.scale.shape == (BATCH, HEADS)
    back = quantized.values * quantized.scale[:, None, :, None]
    mean = keys[:, :REAL].mean(1, keepdims=True).astype(jnp.bfloat16)
    differences = (back - (keys - mean))[:, :REAL]
    assert jnp.all(jnp.abs(differences) <= 0.5001 * quantized.scale[:, None, :, None])
    # The whole range is used: the largest magnitude of every head is 127.
    np.testing.assert_array_equal(jnp.abs(quantized.values).max((1, 3)), 127)


def test_padding_is_in_neither_mean_nor_scale_and_becomes_zero(keys: jax.Array):
    expected = quantize_keys(keys.at[:, REAL:].set(0), REAL)
    spoilt = quantize_keys(keys.at[:, REAL:].set(jnp.nan), REAL)
    np.testing.assert_array_equal(spoilt.values, expected.values)
    np.testing.assert_array_equal(spoilt.scale, expected.scale)
    assert not spoilt.values[:, REAL:].any()


def test_a_bad_number_in_a_real_key_is_not_hidden(keys: jax.Array):
    scale = quantize_keys(keys.at[1, 3, 2, 5].set(jnp.nan), REAL).scale
    np.testing.assert_array_equal(jnp.isnan(scale), [[False] * 3, [False, False, True]])


def test_groups_of_heads_have_what_their_heads_have(keys: jax.Array):
    """The form that devices exchange; the last head of the second group is padding."""
    padded = jnp.pad(keys, ((0, 0), (0, 0), (0, 1), (0, 0)))
    grouped = padded.reshape(BATCH, KEYS, 2, 2 * FEATURES).transpose(2, 0, 1, 3)
    quantized = quantize_grouped(grouped, head_dim=FEATURES, num_keys=REAL)
    expected = quantize_keys(padded, REAL)
    values = quantized.values.transpose(1, 2, 0, 3).reshape(padded.shape)
    np.testing.assert_array_equal(values, expected.values)
    np.testing.assert_array_equal(
        quantized.scale.transpose(1, 0, 2).reshape(BATCH, 4), expected.scale
    )
    assert not values[:, :, 3].any()  # a head of padding


def test_less_the_mean_attention_is_nearer_to_the_exact(keys: jax.Array):
    """What all keys share takes 8 bits from what differs, unless it is taken off first."""
    query = jax.random.normal(jax.random.key(1), keys.shape) / jnp.asarray([1, 10, 0.1])[:, None]
    value = jax.random.normal(jax.random.key(2), keys.shape)[:, :REAL]
    exact = reference_attention(query, keys[:, :REAL], value)
    quantized = quantize_keys(keys, REAL)
    less_mean = (quantized.values * quantized.scale[:, None, :, None])[:, :REAL]
    largest = jnp.abs(keys[:, :REAL]).max((1, 3), keepdims=True) / 127
    as_it_is = jnp.round(keys[:, :REAL] / largest) * largest
    errors = [
        jnp.linalg.norm(reference_attention(query, key, value) - exact) / jnp.linalg.norm(exact)
        for key in (less_mean, as_it_is)
    ]
    assert errors[0] < 0.02
    assert errors[0] < errors[1] / 2
