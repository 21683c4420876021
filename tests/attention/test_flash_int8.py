"""Our kernel over keys of 8 bits, interpreted: near the attention over the same whole numbers."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerances import relative_error
from wan_tpu.attention.flash_blocks import Blocks, Order
from wan_tpu.attention.flash_int8 import (
    flash_int8_attention,
    flash_int8_chunks,
    flash_int8_with_logsumexp,
)
from wan_tpu.attention.flash_int8_kernel import LARGEST_QUERY, PACKED, constants, digits
from wan_tpu.attention.int8_keys import QuantizedKeys
from wan_tpu.errors import InputError

SMALL = Blocks(queries=384, keys=512, compute=256, last_compute=128, order=Order(strip=256))
SUBTRACTED = dataclasses.replace(SMALL, order=Order(strip=256, subtracts=True))

SAME_NUMBERS = 2e-2
"""Result over the same whole numbers. Exponents of weights that matter are some 8 at most, and are
rounded to 8 bits twice, by 2^-6 of 1 each at worst: the weight by 1.1 % each. Over many keys that
is averaged; over few, or where many have one score, it is not."""

EXACT = 5e-2
"""Against exact attention, queries and keys of one size: a key's feature is off by 1/127 of the
largest of all at most, 4.4 standard deviations here: 1 % of its size (root mean square), which a
score of 128 features is off by, too; times a score's size, 2, as a share of its weight."""


def cut(x, chunks):
    """[batch, tokens, heads, head_dim] -> [chunks, batch, chunk, heads * head_dim]."""
    x = x.reshape(x.shape[0], chunks, x.shape[1] // chunks, -1)
    return x.transpose(1, 0, 2, 3)


def quantize(key, num_keys=None):
    """`int8_keys.quantize_keys` in NumPy: eager JAX would compile each of its operations."""
    key = np.asarray(key, np.float32)
    key = key - key[:, :num_keys].mean(1, keepdims=True)
    largest = np.maximum(np.abs(key[:, :num_keys]).max((1, 3), keepdims=True), 1e-30)
    values = np.clip(np.round(key * (127 / largest)), -127, 127).astype(np.int8)
    return QuantizedKeys(jnp.asarray(values), jnp.asarray(largest[:, 0, :, 0] / 127))


@functools.cache
def compiled(num_keys, head_dim, blocks, excess):
    """The kernel under jit, interpreted: shared by all tests of one shape."""

    def attention(query, key, scale, value):
        return flash_int8_with_logsumexp(
            query, QuantizedKeys(key, scale), value,
            head_dim=head_dim, num_keys=num_keys, blocks=blocks, interpret=True,
        )  # fmt: skip

    return jax.jit(attention, compiler_options={"xla_allow_excess_precision": excess})


def run(query, keys, value, *, num_keys=None, chunks=1, blocks=SMALL, padding=0):
    """Result and logsumexp over tokens cut into `chunks`.

    Rows of keys after the last real one become `padding`, of values NaN.
    """
    num_keys = num_keys or value.shape[1]
    values, value = np.array(keys.values), value.copy()
    values[:, num_keys:], value[:, num_keys:] = padding, np.nan
    # A CPU's XLA rounds as often as it is told only then, and has no such product of bfloat16.
    excess = value.dtype != np.float32
    attention = compiled(num_keys, query.shape[-1], blocks, excess)
    arrays = cut(query, chunks), cut(values, chunks), np.asarray(keys.scale), cut(value, chunks)
    out, logsumexp = attention(*arrays)
    out = np.asarray(out).transpose(1, 0, 2, 3).reshape(query.shape)
    return out, np.asarray(logsumexp)


@pytest.fixture
def qkv(make_qkv):
    """130 queries, three whole blocks of 512 keys: one program for most tests."""
    return make_qkv(1, 130, 1536, 1, 128)


def rounded_query(query, keys):
    """[batch, queries, heads, head_dim], float64: as the kernel takes it, in whole numbers times
    the next bfloat16 number that is not below the scale."""
    keys_scale = np.asarray(keys.scale, np.float32)[:, None, :, None]
    factor = np.float32(query.shape[-1] ** -0.5 * math.log2(math.e))
    scaled = query.astype(np.float32) * factor
    largest = np.maximum(np.abs(scaled).max(-1, keepdims=True), np.float32(1e-30))
    scale = (largest * (keys_scale / LARGEST_QUERY) * np.float32(1 + 2**-8)).astype(jnp.bfloat16)
    scale = scale.astype(np.float64) / keys_scale
    whole = np.round(scaled / scale)
    assert np.abs(whole).max() <= LARGEST_QUERY
    return whole * scale / factor


def same_numbers(query, keys, value, num_keys=None):
    """What `exact` is given to be held to: queries, keys and values that the kernel multiplies."""
    back = np.asarray(keys.values, np.float64) * np.asarray(keys.scale)[:, None, :, None]
    return rounded_query(query, keys), back[:, :num_keys], value[:, :num_keys]


@pytest.mark.parametrize(
    ("queries", "keys", "num_keys", "chunks", "blocks"),
    [
        (80, 80, 80, 1, None),  # wan-tiny: less than any block
        (300, 1300, 1163, 2, SMALL),  # a narrow last strip; both chunks end inside a tile
        (300, 1300, 1163, 2, SUBTRACTED),
        (260, 520, 130, 4, SMALL),  # two chunks of padding, and one with no key but its first
        (130, 1280, 1100, 5, None),  # chosen: all chunks in one block
    ],
)
def test_lengths(queries, keys, num_keys, chunks, blocks, make_qkv, exact):
    """Padding holds the largest keys, and NaN for values.

    Red when `valid` forgets the chunks before, when the last tile keeps all its rows, when a
    narrow strip is not carried as one, when a query's scale is that of another, or when the vector
    unit, where it is to, does not subtract the reference.
    """
    query, key, value = make_qkv(2, queries, keys, 2, 16)
    query *= np.exp(np.random.default_rng(1).normal(size=(2, queries, 2, 1))).astype(np.float32)
    quantized = quantize(key, num_keys)
    out, _ = run(
        query, quantized, value, num_keys=num_keys, chunks=chunks, blocks=blocks, padding=127
    )
    expected = exact(*same_numbers(query, quantized, value, num_keys))
    assert relative_error(out, expected) < SAME_NUMBERS


@pytest.mark.parametrize("size", [1, 3])
def test_near_exact_attention(size, qkv, exact):
    """Keys with a common part of 5: red when it is not taken off."""
    query, key, value = qkv
    query, key = query * size, key + 5
    out, _ = run(query, quantize(key), value)
    expected = exact(query, key, value)
    assert np.linalg.norm(out - expected) / np.linalg.norm(expected) < EXACT


def test_tokens_in_one_piece(make_qkv, exact):
    query, key, value = make_qkv(2, 40, 72, 3, 16)
    quantized = quantize(key, 70)
    out = jax.jit(functools.partial(flash_int8_attention, num_keys=70, interpret=True))(
        query, quantized, value
    )
    expected = exact(*same_numbers(query, quantized, value, 70))
    assert relative_error(out, expected) < SAME_NUMBERS


def test_digits_are_the_reference():
    """Exactly, and of 8 bits. Red when a digit has another factor, or one less feature."""
    reach = LARGEST_QUERY * 127 * 128
    random = np.random.default_rng(0).integers(-reach, reach + 1, 20_000)
    units = np.concatenate([[-reach, reach], np.arange(-300, 301), random])
    third, last = jax.jit(digits)(jnp.asarray(units, jnp.float32)[None])
    features = np.concatenate([third] * (128 // PACKED - 1) + [last]).astype(np.int64)
    assert np.abs(features).max() <= 127
    of_keys = np.asarray(constants(2), np.int64)
    assert (of_keys @ features == units).all()


def test_the_largest_scores_there_are(qkv, exact):
    """Queries along and against all keys: their scores are plus and minus the digits' reach.

    Red (not a number) when the reference stops two digits before its reach.
    """
    query, _, value = qkv
    signs = np.where(query[:, :1] < 0, -1, 1)
    query = np.concatenate([signs, -signs] * 65, axis=1).astype(np.float32) * 256  # 126 of 126
    values = np.repeat(signs, 1536, axis=1).astype(np.int8) * 127
    values[0, :, 0, 0] = np.linspace(-127, 127, 1536)
    quantized = QuantizedKeys(jnp.asarray(values), jnp.full((1, 1), 0.05, jnp.float32))
    out, _ = run(query, quantized, value)
    expected = exact(*same_numbers(query, quantized, value))
    assert relative_error(out, expected) < SAME_NUMBERS


@pytest.mark.parametrize("rising", [1, -1], ids=["rising", "falling"])
def test_scores_that_jump_between_blocks(rising, qkv, exact):
    """Each block's scores stand hundreds above (or below) those of the one before.

    Rising, a block's sum overflows against the reference of the blocks before, and the block is
    done again: red (infinite) when it is not.
    """
    query, key, value = qkv
    size = np.repeat([1.0, 30.0, 200.0][::rising], 512)[:, None, None]
    quantized = quantize((key * size).astype(np.float32))
    out, _ = run(query, quantized, value)
    expected = exact(*same_numbers(query, quantized, value))
    assert relative_error(out, expected) < SAME_NUMBERS


def test_a_query_that_is_not_a_number_stays_alone(qkv, exact):
    """And a query of zeros takes the mean."""
    query, key, value = qkv
    query[:, 5] = 0
    quantized = quantize(key)
    expected = exact(*same_numbers(query, quantized, value))
    query[:, 7], query[:, 8, 0, 3] = np.nan, np.inf
    out, _ = run(query, quantized, value)
    others = np.setdiff1d(np.arange(130), [7, 8])
    assert np.isnan(out[:, [7, 8]]).all()
    assert relative_error(out[:, others], expected[:, others]) < SAME_NUMBERS
    assert relative_error(out[:, 5], value.mean(1)) < SAME_NUMBERS


def test_logsumexp_is_that_of_the_scores_less_the_common_part(qkv):
    """1e-3: what is left of the roundings over 1,536 keys, 0.2 to 0.6 thousandths."""
    query, key, value = qkv
    quantized = quantize(key + 3)
    _, logsumexp = run(query, quantized, value)
    rounded, back, _ = same_numbers(query, quantized, value)
    scores = rounded[0, :, 0] @ back[0, :, 0].T / math.sqrt(128)
    expected = np.log(np.exp(scores).sum(axis=1))
    assert np.abs(logsumexp[0, 0] - expected).mean() < 1e-3


def test_bfloat16_comes_out_as_it_came_in(make_qkv, exact):
    query, key, value = make_qkv(1, 130, 300, 1, 128, dtype=jnp.bfloat16)
    quantized = quantize(key)
    out, _ = run(query, quantized, value, blocks=None)
    assert out.dtype == jnp.bfloat16
    expected = exact(*same_numbers(query, quantized, value))
    assert relative_error(out, expected) < 2e-2  # the result is rounded, too: 4e-3


def call(head_dim=16, **others):
    query = jnp.zeros((1, 1, 8, head_dim))
    keys = QuantizedKeys(jnp.zeros(query.shape, jnp.int8), jnp.ones((1, 1)))
    return lambda query: flash_int8_chunks(
        query, keys, query, head_dim=head_dim, num_keys=8, **{"interpret": True} | others
    ), query


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"head_dim": 256}, "heads of 128 features, not of 256"),
        ({"head_dim": 64, "interpret": False}, "heads of 128 features, not of 64"),
        ({"head_dim": 128, "interpret": False, "device_kind": "TPU7x"}, "TPU7x has none; flash"),
    ],
)
def test_what_it_does_not_take(arguments, words):
    function, query = call(**arguments)
    with pytest.raises(InputError, match=words):
        jax.eval_shape(function, query)


def test_it_has_no_gradient():
    function, query = call()
    with pytest.raises(InputError, match=r"no gradient.*train with flash"):
        jax.grad(lambda x: function(x).sum())(query)
