"""Attention to few keys in one tile is exact: lengths, padding, scores far from 0, the gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerances import PARITY, relative_error
from wan_tpu.attention import flash_short
from wan_tpu.attention.flash import flash_attention, flash_with_logsumexp
from wan_tpu.attention.flash_short import MOST_KEYS, takes


def cut(x, chunks):
    """[batch, tokens, heads, head_dim] -> [chunks, batch, chunk, heads * head_dim]."""
    x = x.reshape(x.shape[0], chunks, x.shape[1] // chunks, -1)
    return x.transpose(1, 0, 2, 3)


def run(num_keys, query, key, value, *, chunks=1):
    """The result, as the query is, and the logsumexp, interpreted."""
    attention = functools.partial(
        flash_with_logsumexp, head_dim=query.shape[-1], num_keys=num_keys, interpret=True
    )
    assert takes(1, key.shape[1])
    arrays = (cut(query, chunks), cut(key, 1), cut(value, 1))
    out, logsumexp = jax.jit(attention)(*arrays)
    return np.asarray(out).transpose(1, 0, 2, 3).reshape(query.shape), np.asarray(logsumexp)


@pytest.fixture(autouse=True)
def small_strips(monkeypatch):
    """Two strips of a block of 200 queries, and one not full."""
    monkeypatch.setattr(flash_short, "STRIP", 128)


@pytest.mark.parametrize(
    ("queries", "keys", "num_keys", "chunks"),
    [(200, 512, 512, 1), (520, 257, 257, 2), (80, 77, 60, 1), (8, 1, 1, 1), (130, 1024, 897, 1)],
)
def test_is_exact(queries, keys, num_keys, chunks, make_qkv, spoil, exact):
    """The padding holds NaN. Red when padding has a weight, a strip takes another's weights, or a
    chunk begins where the one before does."""
    query, key, value = make_qkv(2, queries, keys, 2, 16)
    _, key, value = spoil((query, key, value), num_keys, np.nan)
    out, logsumexp = run(num_keys, query, key, value, chunks=chunks)
    key, value = key[:, :num_keys], value[:, :num_keys]
    assert relative_error(out, exact(query, key, value)) < PARITY
    scores = np.einsum("bqhd,bkhd->bhqk", *(x.astype(np.float64) for x in (query, key))) / 4
    assert relative_error(logsumexp, np.log(np.exp(scores).sum(-1))) < PARITY


@pytest.mark.parametrize("distance", [300, -300, 60, -60], ids=str)
def test_scores_far_from_nought(distance, make_qkv, exact):
    """Of half of the queries: all weights overflow, or vanish, and the block is done once more.

    1e-4: scores of some 300 to 7 digits. Red (not a number) when it is not done again.
    """
    query, key, value = make_qkv(1, 200, 300, 1, 16)
    key[..., 0], query[:, :90, :, 0] = 40, distance / 10
    out, _ = run(300, query, key, value)
    assert relative_error(out, exact(query, key, value)) < 1e-4


def test_a_value_that_is_not_a_number_stays_in_its_query(make_qkv, exact):
    query, key, value = make_qkv(1, 40, 60, 1, 16)
    expected = exact(query, key, value)
    query[:, 7] = np.nan
    out, _ = run(60, query, key, value)
    assert np.isnan(out[:, 7]).all()
    others = np.arange(40) != 7
    assert relative_error(out[:, others], expected[:, others]) < PARITY


def test_bfloat16_loses_what_rounding_loses(make_qkv, exact):
    """2e-2: scaled queries, weights and results are each rounded to 8 bits, 2^-8 = 4e-3."""
    arrays = make_qkv(1, 130, 512, 2, 128, dtype=jnp.bfloat16)
    out, _ = run(512, *arrays)
    assert out.dtype == jnp.bfloat16
    assert relative_error(out, exact(*arrays)) < 2e-2


def test_gradient(make_qkv):
    """By JAX's own rules of a plain softmax. Red when the logsumexp is of another base."""
    arrays = make_qkv(1, 40, 60, 1, 16)
    d_out = make_qkv(1, 40, 60, 1, 16, seed=1)[0]

    def plain(query, key, value):
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / 4
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)

    def ours(*arrays):
        out = flash_attention(
            *(x.reshape(1, *x.shape[:2], -1) for x in arrays),
            head_dim=16, num_keys=60, interpret=True,
        )  # fmt: skip
        return out.reshape(d_out.shape)

    for actual, expected in zip(
        *(jax.jit(lambda *a, f=f: jax.vjp(f, *a)[1](d_out))(*arrays) for f in (ours, plain)),
        strict=True,
    ):
        assert relative_error(actual, expected) < PARITY


def test_which_keys_are_few():
    """More, and keys in chunks, go block by block."""
    assert takes(1, MOST_KEYS)
    assert not takes(1, MOST_KEYS + 1)
    assert not takes(2, 40)
