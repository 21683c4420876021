"""Keys that go round in a ring: merged exactly, padding never, whatever attends to a block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.attention.test_sequence_parallel import make, split_self
from tests.tolerances import PARITY, relative_error
from wan_tpu.attention.api import attend_with_logsumexp
from wan_tpu.attention.names import EXACT_INSTEAD, IMPLEMENTATIONS
from wan_tpu.attention.ring import NOTHING, Partial, merge, real_keys

NAMES = pytest.mark.parametrize(
    "name", [name for name in IMPLEMENTATIONS if name not in ("auto", *EXACT_INSTEAD)]
)


@pytest.fixture(scope="session")
def exact_logsumexp():
    """Of each query's scores in float64, [batch, heads, queries]."""

    def logsumexp(query, key):
        query, key = np.asarray(query, np.float64), np.asarray(key, np.float64)
        scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
        largest = scores.max(axis=-1, keepdims=True)
        return largest[..., 0] + np.log(np.exp(scores - largest).sum(axis=-1))

    return logsumexp


@NAMES
@pytest.mark.parametrize("num_keys", [72, 61])
def test_logsumexp_of_every_implementation(name, num_keys, make_qkv, spoil, exact, exact_logsumexp):
    """Red when it is of unscaled scores, over padding, or in base 2."""
    query, key, value = make_qkv(2, 40, 72, 3, 16)
    _, key, value = spoil((query, key, value), num_keys, np.nan)
    attended, logsumexp = jax.jit(
        lambda *x: attend_with_logsumexp(*x, implementation=name, num_keys=num_keys)
    )(query, key, value)
    assert logsumexp.shape == (2, 3, 40)
    assert relative_error(logsumexp, exact_logsumexp(query, key[:, :num_keys])) < PARITY
    assert relative_error(attended, exact(query, key[:, :num_keys], value[:, :num_keys])) < PARITY


@NAMES
def test_logsumexp_is_float32_whatever_the_dtype(name, make_qkv, exact_logsumexp):
    """1,024 equal scores: ln 1024 = 6.931 is 6.938 in bfloat16, a weight wrong by 0.6%."""
    query, key, value = make_qkv(1, 8, 1024, 2, 16, dtype=jnp.bfloat16)
    _, logsumexp = jax.jit(lambda *x: attend_with_logsumexp(*x, implementation=name))(
        query * 0, key, value
    )
    assert logsumexp.dtype == jnp.float32
    assert relative_error(logsumexp, exact_logsumexp(query * 0, key)) < PARITY


@NAMES
@pytest.mark.parametrize(
    ("text", "length", "num_keys"),
    [
        ("sp4", 40, 40),  # no padding
        ("sp4", 40, 37),  # in the last shard
        ("sp4", 40, 30),  # the last shard is all padding
        ("sp8", 40, 12),  # five of them are, one more in part
        ("dp2-sp2-tp2", 304, 299),
    ],
)
def test_padding_never_enters(name, text, length, num_keys, devices, make_qkv, spoil, exact):
    """The padding holds NaN, in queries, too.

    Red when every shard attends to whole blocks. Tried: `num_keys` not passed on, NaN.
    """
    layout, mesh = make(text, "ring", devices)
    arrays = spoil(make_qkv(2, length, length, 2, 16), num_keys, np.nan)
    expected = exact(*(x[:, :num_keys] for x in arrays))
    out, _ = split_self(arrays, layout, mesh, name, num_keys)
    assert relative_error(out[:, :num_keys], expected) < PARITY


@NAMES
def test_largest_scores_wherever_they_are(name, devices, make_qkv, exact):
    """Scores of some thousands, their largest in another shard for each query.

    Red when blocks are averaged, when exponentials are taken before the maximum is subtracted, or
    when an earlier block's weight is not made less by a later one's maximum. Tried: the larger
    logsumexp instead of their sum in `merge`, 0.23.
    """
    layout, mesh = make("sp8", "ring", devices)
    query, key, value = make_qkv(1, 64, 64, 2, 16)
    query = query * 1000
    out, _ = split_self((query, key, value), layout, mesh, name, None)
    assert relative_error(out, exact(query, key, value)) < 1e-3  # scores of 3,000 to 7 digits


def test_bfloat16_is_merged_in_float32(devices, make_qkv, exact):
    """Each block's part is rounded to 8 bits, their sum once more; 2^-8 = 4e-3 each."""
    layout, mesh = make("sp8", "ring", devices)
    arrays = make_qkv(1, 64, 64, 2, 16, dtype=jnp.bfloat16)
    out, _ = split_self(arrays, layout, mesh, "reference", None)
    assert out.dtype == jnp.bfloat16
    assert relative_error(out, exact(*arrays)) < 1e-2


@pytest.mark.parametrize(
    ("num_keys", "length", "ways", "expected"),
    [
        (None, 10, 2, (10, 10)),
        (20, 10, 2, (10, 10)),
        (11, 10, 2, (10, 1)),
        (10, 10, 2, (10, 0)),
        (3, 10, 4, (3, 0, 0, 0)),
    ],
)
def test_real_keys(num_keys, length, ways, expected):
    assert real_keys(num_keys, length, ways) == expected


def test_no_keys_are_nothing_beside_some_and_no_nan_beside_none():
    """A device whose own shard is padding starts with nothing, and may meet nothing next."""
    nothing = Partial(jnp.zeros((1, 1, 1, 2)), jnp.full((1, 1, 1), NOTHING))
    some = Partial(jnp.ones((1, 1, 1, 2)), jnp.full((1, 1, 1), -1e4))
    for merged in (merge(merge(nothing, nothing), some), merge(some, nothing)):
        np.testing.assert_array_equal(merged.attended, some.attended)
        np.testing.assert_array_equal(merged.logsumexp, some.logsumexp)
