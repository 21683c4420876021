"""Chunks change nothing, and memory stays flat in the length."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tolerances import PARITY, relative_error
from wan_tpu.attention.api import attend
from wan_tpu.attention.chunked import chunked_attention
from wan_tpu.attention.reference import reference_attention


@settings(max_examples=10)
@given(
    queries=st.integers(1, 40),
    keys=st.integers(1, 70),
    key_chunk=st.integers(1, 80),
    scores_limit=st.integers(1, 4000),
    spread=st.sampled_from([1.0, 30.0]),
)
def test_any_chunks_are_exact(make_qkv, exact, queries, keys, key_chunk, scores_limit, spread):
    """Spread scores move the maximum from chunk to chunk.

    Red when `attend_further` does not rescale the total or the weighted sum, when the keys that
    are left after whole chunks are dropped, or when padding queries are not.
    """
    query, key, value = make_qkv(2, queries, keys, 2, 8)
    query = query * spread
    run = jax.jit(lambda *x: chunked_attention(*x, key_chunk=key_chunk, scores_limit=scores_limit))
    expected = exact(query, key, value)
    assert relative_error(run(query, key, value), expected) < 5 * PARITY  # scores up to 300


@pytest.mark.parametrize(
    ("key_chunk", "scores_limit"),
    [
        (1024, 1 << 24),  # one of everything
        (1024, 600),  # two heads, eight queries at a time
        (10, 100),  # seven chunks of keys, the last one shorter
    ],
)
def test_gradients_of_any_chunks(key_chunk, scores_limit, make_qkv):
    """Scores are -144 and less: a key of zeros that fills a chunk would have an infinite weight.

    1e-4: scores of some hundreds have 7 digits. Red when it has one, when the key's gradient is of
    unscaled queries, or when chunks come back in another order.
    """
    query, key, value = make_qkv(2, 37, 61, 2, 16)
    query, key = query + 6, key - 6
    weights = make_qkv(2, 37, 37, 2, 16, seed=1)[0]

    def gradients(function):
        return jax.jit(jax.grad(lambda *x: (function(*x) * weights).sum(), (0, 1, 2)))(
            query, key, value
        )

    found = gradients(
        lambda *x: chunked_attention(*x, key_chunk=key_chunk, scores_limit=scores_limit)
    )
    for one, expected in zip(found, gradients(reference_attention), strict=True):
        assert relative_error(one, expected) < 1e-4


def _temporary_bytes(implementation: str, length: int, *, gradient: bool = False) -> int:
    """Of the compiled program for `length` queries and keys, two heads of 16."""
    array = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.bfloat16)

    def run(*arrays: jax.Array) -> jax.Array:
        return attend(*arrays, implementation=implementation)

    def gradients(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        return jax.grad(lambda *x: run(*x).astype(jnp.float32).sum(), (0, 1, 2))(*arrays)

    return _temporaries(
        jax.jit(gradients if gradient else run).lower(array, array, array).compile()
    )


def _temporaries(compiled: jax.stages.Compiled) -> int:
    memory = compiled.memory_analysis()
    assert memory is not None
    return memory.temp_size_in_bytes


def test_memory_is_linear_in_the_length():
    """Eight times the length, at most eight times the temporaries beyond the chunk's own.

    Red when the query chunk does not shrink, or with `dot_product`, which is measured beside it.
    """
    short, long = (_temporary_bytes("chunked", length) for length in (16_384, 131_072))
    inputs = 3 * 131_072 * 2 * 16 * 4  # float32 copies of query, key and value
    assert long - short < 2 * inputs
    assert long < 8 * short
    whole = [_temporary_bytes("dot_product", length) for length in (1024, 8192)]
    assert whole[1] > 50 * whole[0], "the measure sees a score matrix"


def test_memory_of_the_gradient_is_linear_in_the_length():
    """Forward and backward, eight times the length: measured 1.7 times.

    Red by JAX's derivative of the loops, 64 times (it keeps each chunk's weights), which the plain
    one beside it shows.
    """
    short, long = (
        _temporary_bytes("chunked", length, gradient=True) for length in (16_384, 131_072)
    )
    assert long < 8 * short
    whole = [_temporary_bytes("reference", length, gradient=True) for length in (1024, 8192)]
    assert whole[1] > 30 * whole[0], "the measure sees a score matrix"


def test_the_scores_of_a_720p_video_are_bounded():
    """14B, 75,600 tokens, 40 heads: 914 GB of scores if held at once. Compiled, not run."""
    array = jax.ShapeDtypeStruct((1, 75_600, 40, 128), jnp.bfloat16)
    compiled = jax.jit(chunked_attention).lower(array, array, array).compile()
    inputs = 3 * 75_600 * 40 * 128 * 4
    assert _temporaries(compiled) < 3 * inputs


@pytest.mark.parametrize("length", [80, 1560])
def test_short_lengths_are_one_chunk(length):
    """wan-tiny's 80 tokens pay for no loop over queries. Red when `SCORES_LIMIT` is too small."""
    array = jax.ShapeDtypeStruct((2, length, 2, 16), jnp.float32)
    jaxpr = str(jax.make_jaxpr(chunked_attention)(array, array, array))
    assert f"2,2,{length},16" in jaxpr.replace(" ", "")
    assert "length=1\n" in jaxpr
