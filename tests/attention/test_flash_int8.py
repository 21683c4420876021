"""Our kernel over keys of 8 bits, interpreted: near the attention over the same whole numbers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerances import relative_error
from wan_tpu.attention.flash_blocks import Blocks
from wan_tpu.attention.flash_int8 import (
    flash_int8_attention,
    flash_int8_chunks,
    flash_int8_with_logsumexp,
)
from wan_tpu.attention.flash_int8_kernel import LARGEST_QUERY, PACKED, constants, digits
from wan_tpu.attention.int8_keys import QuantizedKeys
from wan_tpu.errors import InputError

SMALL = Blocks(queries=384, keys=512, compute=256, last_compute=128)

SAME_NUMBERS = 1.5e-2
"""Result over the same whole numbers: a weight is rounded to 8 bits, and so is its exponent, twice:
by 2^-9 of some 8, hence the weight by 1 %. Over many keys that is averaged, over few it is not."""

EXACT = 5e-2
"""Against exact attention, queries and keys of one size: a key's feature is off by 1/127 of the
largest of all at most, 4.4 standard deviations here: 1 % of its size (root mean square), which a
score of 128 features is off by, too; times a score's size, 2, as a share of its weight."""


def cut(x, chunks):
    """[batch, tokens, heads, head_dim] -> [chunks, batch, chunk, heads * head_dim]."""
    x = x.reshape(x.shape[0], chunks, x.shape[1] // chunks, -1)
    return x.transpose(1, 0, 2, 3)


def quantize(key, num_keys):
    """`int8_keys.quantize_keys` in NumPy: eager JAX would compile each of its operations."""
    key = np.asarray(key, np.float32)
    key = key - key[:, :num_keys].mean(1, keepdims=True)
    largest = np.maximum(np.abs(key[:, :num_keys]).max((1, 3), keepdims=True), 1e-30)
    values = np.clip(np.round(key * (127 / largest)), -127, 127).astype(np.int8)
    return QuantizedKeys(jnp.asarray(values), jnp.asarray(largest[:, 0, :, 0] / 127))


def run(num_keys, query, keys, value, *, chunks=1, blocks=None, padding=0):
    """Result and logsumexp of the kernel under jit, interpreted, over tokens cut into `chunks`.

    Rows of keys after the last real one become `padding`, of values NaN.
    """
    values = np.array(keys.values)
    values[:, num_keys:] = padding
    value = value.copy()
    value[:, num_keys:] = np.nan

    # A CPU's XLA rounds as often as it is told only then, and has no such product of bfloat16.
    excess = value.dtype != np.float32

    @functools.partial(jax.jit, compiler_options={"xla_allow_excess_precision": excess})
    def attention(query, key, scale, value):
        return flash_int8_with_logsumexp(
            query, QuantizedKeys(key, scale), value,
            head_dim=query.shape[-1] // keys.scale.shape[1], num_keys=num_keys, blocks=blocks,
            interpret=True,
        )  # fmt: skip

    arrays = cut(query, chunks), cut(values, chunks), np.asarray(keys.scale), cut(value, chunks)
    out, logsumexp = attention(*arrays)
    out = np.asarray(out).transpose(1, 0, 2, 3).reshape(query.shape)
    return out, np.asarray(logsumexp)


def rounded_query(query, keys):
    """[batch, queries, heads, head_dim], float64: as the kernel takes it, in whole numbers times
    the next bfloat16 number that is not below the scale."""
    keys_scale = np.asarray(keys.scale, np.float32)[:, None, :, None]
    factor = np.float32(query.shape[-1] ** -0.5 * math.log2(math.e))
    scaled = query.astype(np.float32) * factor
    largest = np.maximum(np.abs(scaled).max(-1, keepdims=True), np.float32(1e-30))
    scale = (largest * (keys_scale / LARGEST_QUERY) * np.float32(1 + 2**-7)).astype(jnp.bfloat16)
    scale = scale.astype(np.float64) / keys_scale
    whole = np.round(scaled / scale)
    assert np.abs(whole).max() <= LARGEST_QUERY
    return whole * scale / factor


def same_numbers(query, keys, num_keys, value):
    """What `exact` is given to be held to: queries, keys and values that the kernel multiplies."""
    back = np.asarray(keys.values, np.float64) * np.asarray(keys.scale)[:, None, :, None]
    return rounded_query(query, keys), back[:, :num_keys], value[:, :num_keys]


@pytest.mark.parametrize(
    ("queries", "keys", "num_keys", "chunks", "blocks"),
    [
        (80, 80, 80, 1, None),  # wan-tiny: less than any block
        (8, 8, 1, 1, None),
        (300, 1300, 1163, 2, SMALL),  # a narrow last strip; both chunks end inside a tile
        (260, 520, 130, 4, SMALL),  # two chunks of padding, and one with no key but its first
        (384, 1536, 1536, 1, SMALL),  # whole blocks and tiles
        (130, 1280, 1100, 5, None),  # chosen: all chunks in one block
    ],
)
def test_lengths(queries, keys, num_keys, chunks, blocks, make_qkv, exact):
    """Padding holds the largest keys, and NaN for values.

    Red when `valid` forgets the chunks before, when the last tile keeps all its rows, when a
    narrow strip is not carried as one, or when a query's scale is that of another.
    """
    query, key, value = make_qkv(2, queries, keys, 2, 16)
    query *= np.exp(np.random.default_rng(1).normal(size=(2, queries, 2, 1))).astype(np.float32)
    quantized = quantize(key, num_keys)
    out, _ = run(num_keys, query, quantized, value, chunks=chunks, blocks=blocks, padding=127)
    expected = exact(*same_numbers(query, quantized, num_keys, value))
    assert relative_error(out, expected) < SAME_NUMBERS


@pytest.mark.parametrize("size", [1, 3])
def test_near_exact_attention(size, make_qkv, exact):
    """Keys with a common part of 5: red when the scores lose it to the scale."""
    query, key, value = make_qkv(1, 130, 1300, 1, 128)
    query, key = query * size, key + 5
    out, _ = run(1300, query, quantize(key, 1300), value, blocks=SMALL)
    expected = exact(query, key, value)
    assert np.linalg.norm(out - expected) / np.linalg.norm(expected) < EXACT


def test_tokens_in_one_piece(make_qkv, exact):
    query, key, value = make_qkv(2, 40, 72, 3, 16)
    quantized = quantize(key, 70)
    out = jax.jit(functools.partial(flash_int8_attention, num_keys=70, interpret=True))(
        query, quantized, value
    )
    expected = exact(*same_numbers(query, quantized, 70, value))
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


def test_the_largest_scores_there_are(exact):
    """Queries along and against all keys: their scores are plus and minus the digits' reach.

    Red (not a number) with fewer features for the third digit.
    """
    signs = np.where(np.random.default_rng(0).random((1, 1, 1, 128)) < 0.5, -1, 1)
    query = np.concatenate([signs, -signs] * 4, axis=1).astype(np.float32) * 30
    values = np.repeat(signs, 300, axis=1).astype(np.int8) * 127
    values[:, :, :, 0] = np.arange(-127, 128)[np.linspace(0, 254, 300).astype(int), None]
    quantized = QuantizedKeys(jnp.asarray(values), jnp.full((1, 1), 0.05, jnp.float32))
    value = np.random.default_rng(1).normal(size=values.shape).astype(np.float32)
    out, _ = run(300, query, quantized, value, blocks=SMALL)
    expected = exact(*same_numbers(query, quantized, 300, value))
    assert relative_error(out, expected) < SAME_NUMBERS


@pytest.mark.parametrize("rising", [1, -1], ids=["rising", "falling"])
def test_scores_that_jump_between_blocks(rising, make_qkv, exact):
    """Each block's scores stand hundreds above (or below) those of the one before.

    Rising, a block's sum overflows against the reference of the blocks before, and the block is
    done again: red (infinite) when it is not.
    """
    query, key, value = make_qkv(1, 40, 2048, 1, 16)
    size = np.repeat([1.0, 30.0, 200.0, 1000.0][::rising], 512)[:, None, None]
    quantized = quantize((key * size).astype(np.float32), 2048)
    out, _ = run(2048, query, quantized, value, blocks=SMALL)
    expected = exact(*same_numbers(query, quantized, 2048, value))
    assert relative_error(out, expected) < SAME_NUMBERS


def test_a_query_that_is_not_a_number_stays_alone(make_qkv, exact):
    """And a query of zeros takes the mean."""
    query, key, value = make_qkv(1, 40, 300, 1, 16)
    query[:, 5] = 0
    quantized = quantize(key, 300)
    expected = exact(*same_numbers(query, quantized, 300, value))
    query[:, 7], query[:, 8, 0, 3] = np.nan, np.inf
    out, _ = run(300, query, quantized, value, blocks=SMALL)
    others = np.setdiff1d(np.arange(40), [7, 8])
    assert np.isnan(out[:, [7, 8]]).all()
    assert relative_error(out[:, others], expected[:, others]) < SAME_NUMBERS
    assert relative_error(out[:, 5], value.mean(1)) < SAME_NUMBERS


def test_logsumexp_is_that_of_the_scores_less_the_common_part(make_qkv):
    query, key, value = make_qkv(1, 128, 1024, 1, 16)
    quantized = quantize(key + 3, 1000)
    _, logsumexp = run(1000, query, quantized, value, blocks=SMALL)
    rounded, back, _ = same_numbers(query, quantized, 1000, value)
    scores = rounded[0, :, 0] @ back[0, :, 0].T / 4
    expected = np.log(np.exp(scores).sum(axis=1))
    assert np.abs(logsumexp[0, 0] - expected).mean() < 1e-3


def test_bfloat16_comes_out_as_it_came_in(make_qkv, exact):
    query, key, value = make_qkv(1, 130, 300, 1, 128, dtype=jnp.bfloat16)
    quantized = quantize(key, 300)
    out, _ = run(300, query, quantized, value, blocks=SMALL)
    assert out.dtype == jnp.bfloat16
    expected = exact(*same_numbers(query, quantized, 300, value))
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
