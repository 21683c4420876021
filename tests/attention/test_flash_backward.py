"""The gradient through our kernels, interpreted, is the reference's: lengths, padding, chunks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from tests.tolerances import BFLOAT16_GRADIENT, PARITY, relative_error
from wan_tpu.attention.flash import flash_attention, flash_with_logsumexp
from wan_tpu.attention.flash_backward import (
    MAX_KEYS,
    MAX_QUERIES,
    choose_backward_blocks,
    flash_backward,
)
from wan_tpu.attention.flash_blocks import LANES, Blocks
from wan_tpu.attention.names import ATTENTION_LOGSUMEXP, ATTENTION_OUT
from wan_tpu.attention.reference import reference_with_logsumexp

SMALL = Blocks(queries=128, keys=512, compute=256, last_compute=128)

HALVES = slice(32), slice(32, 64)


def cut(x, chunks):
    """[batch, tokens, heads, head_dim] -> [chunks, batch, chunk, heads * head_dim]."""
    x = jnp.asarray(x).reshape(x.shape[0], chunks, x.shape[1] // chunks, -1)
    return x.transpose(1, 0, 2, 3)


def join(x, shape):
    return np.asarray(x.transpose(1, 0, 2, 3).reshape(shape), np.float32)


def random_gradients(query):
    """Of the result, like `query`, and of the logsumexp."""
    random = np.random.default_rng(1)
    batch, queries, heads, _ = query.shape
    d_out = random.standard_normal(query.shape, np.float32).astype(query.dtype)
    return d_out, jnp.asarray(random.standard_normal((batch, heads, queries), np.float32))


def by_reference(query, key, value, d_out, d_logsumexp, num_keys):
    """The reference's results, and its gradients by JAX; those of padding keys are zeros."""

    @jax.jit
    def run(query, key, value):
        results, backward = jax.vjp(reference_with_logsumexp, query, key, value)
        return results, backward((d_out.astype(np.float32), d_logsumexp))

    real = (np.asarray(x, np.float32) for x in (query, key[:, :num_keys], value[:, :num_keys]))
    (out, logsumexp), (d_query, *d_keys) = run(*real)
    padding = ((0, 0), (0, key.shape[1] - num_keys), (0, 0), (0, 0))
    gradients = [d_query, *(np.pad(x, padding) for x in d_keys)]
    return (out.astype(query.dtype), logsumexp), gradients


def errors(query, key, value, d_out, d_logsumexp, num_keys, *, chunks=1, blocks=None):
    """Of our kernel under jit, interpreted, over tokens cut into `chunks`; with the gradients."""
    (out, logsumexp), expected = by_reference(query, key, value, d_out, d_logsumexp, num_keys)
    settings = {"head_dim": query.shape[-1], "num_keys": num_keys, "interpret": True}
    ours = jax.jit(functools.partial(flash_backward, blocks=blocks, **settings))(
        *(cut(x, chunks) for x in (query, key, value, out)),
        logsumexp,
        cut(d_out, chunks),
        d_logsumexp=d_logsumexp,
    )
    assert [x.dtype for x in ours] == [query.dtype] * 3
    ours = [join(x, like.shape) for x, like in zip(ours, expected, strict=True)]
    found = {n: relative_error(*x) for n, *x in zip("qkv", ours, expected, strict=True)}
    return found, ours


@pytest.mark.parametrize(
    ("queries", "keys", "num_keys", "chunks", "blocks"),
    [
        (80, 80, 80, 1, None),  # wan-tiny: less than any block
        (500, 700, 641, 1, SMALL),  # all end inside a block, a last tile with one key
        (300, 1300, 1163, 2, SMALL),  # both chunks end inside a tile
        (260, 520, 130, 4, SMALL),  # two chunks of padding, and one with no key but its first
    ],
)
def test_is_exact(queries, keys, num_keys, chunks, blocks, make_qkv, spoil):
    """Of the result and the logsumexp together; the padding holds NaN, its gradient is zero.

    Red when a block's rows beyond the chunk are taken in (NaN here), when the mask's feature is
    left out, when d_query starts anew with each block of keys, or without the logsumexp's gradient.
    """
    query, key, value = make_qkv(1, queries, keys, 2, 16)
    _, key, value = spoil((query, key, value), num_keys, np.nan)
    arrays = query, key, value, *random_gradients(query), num_keys
    found, (_, d_key, d_value) = errors(*arrays, chunks=chunks, blocks=blocks)
    assert max(found.values()) < PARITY, found
    assert not d_key[:, num_keys:].any()
    assert not d_value[:, num_keys:].any()


def test_bfloat16_loses_what_rounding_loses(make_qkv):
    """Red when logsumexp and delta are one bfloat16 number each."""
    query, key, value = make_qkv(1, 130, 1300, 2, 128, dtype=jnp.bfloat16)
    found, _ = errors(query, key, value, *random_gradients(query), 1300, blocks=SMALL)
    assert max(found.values()) < BFLOAT16_GRADIENT, found


def test_scores_of_thousands(make_qkv):
    """1e-3: scores of some 3,000 to 7 digits. Red when less is left of the logsumexp."""
    query, key, value = make_qkv(1, 40, 140, 1, 16)
    found, _ = errors(query * 1000, key, value, *random_gradients(query), 140)
    assert max(found.values()) < 1e-3, found


def test_gradient_of_both_functions(make_qkv):
    """What JAX makes of `flash_attention` and `flash_with_logsumexp`.

    Red when the logsumexp's gradient is dropped, or its sign is wrong.
    """
    query, key, value = make_qkv(1, 40, 72, 2, 16)
    d_out, d_logsumexp = random_gradients(query)
    settings = {"head_dim": 16, "num_keys": 61, "interpret": True}
    for function, d_results, of_logsumexp in (
        (flash_attention, cut(d_out, 1), 0 * d_logsumexp),
        (flash_with_logsumexp, (cut(d_out, 1), d_logsumexp), d_logsumexp),
    ):
        differentiated = functools.partial(jax.vjp, functools.partial(function, **settings))
        ours = jax.jit(lambda *x, f=differentiated, d=d_results: f(*x)[1](d))(
            *(cut(x, 1) for x in (query, key, value))
        )
        _, expected = by_reference(query, key, value, d_out, of_logsumexp, 61)
        for actual, exact in zip(ours, expected, strict=True):
            assert relative_error(join(actual, exact.shape), exact) < PARITY


def test_some_of_the_keys(make_qkv):
    """With result and logsumexp over all keys, parts of the keys make parts of the gradient.

    Red when the kernel takes a logsumexp of its own.
    """
    query, key, value = make_qkv(1, 40, 64, 2, 16)
    d_out, d_logsumexp = random_gradients(query)
    (out, logsumexp), expected = by_reference(query, key, value, d_out, d_logsumexp, 64)

    @jax.jit
    def over(key, value):
        return flash_backward(
            cut(query, 1), key, value, cut(out, 1), logsumexp, cut(d_out, 1),
            d_logsumexp=d_logsumexp, head_dim=16, num_keys=32, interpret=True,
        )  # fmt: skip

    first, second = (over(cut(key[:, part], 1), cut(value[:, part], 1)) for part in HALVES)
    ours = (
        first[0] + second[0],
        *(jnp.concatenate(x, axis=2) for x in zip(first[1:], second[1:], strict=True)),
    )
    for actual, exact in zip(ours, expected, strict=True):
        assert relative_error(join(actual, exact.shape), exact) < PARITY


def test_padding_queries_never_enter(make_qkv):
    """Queries of NaN, whose results nobody takes: no gradient of theirs, none for the keys.

    Red (NaN) when they are multiplied by their weights, or their delta is left as it is.
    """
    query, key, value = make_qkv(1, 40, 72, 2, 16)
    d_out, d_logsumexp = random_gradients(query)
    d_out[:, 33:], d_logsumexp = 0, d_logsumexp.at[:, :, 33:].set(0)
    _, expected = by_reference(query, key, value, d_out, d_logsumexp, 72)
    query[:, 33:] = np.nan
    _, ours = errors(query, key, value, d_out, d_logsumexp, 72)  # here the reference has NaN, too
    for actual, exact in zip(ours, expected, strict=True):
        assert relative_error(actual, exact) < PARITY


def kernels_of(function, *arrays):
    """Names of the Pallas kernels in a traced function whose results are read, each time."""

    def walk(jaxpr):
        read = {str(x) for equation in jaxpr.eqns for x in equation.invars}
        read |= {str(x) for x in jaxpr.outvars}
        for equation in jaxpr.eqns:
            if equation.primitive.name == "pallas_call":
                if any(str(x) in read for x in equation.outvars):  # else the compiler drops it
                    yield equation.params["name"]
                continue
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple | list) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        yield from walk(inner)

    return sorted(walk(jax.make_jaxpr(function)(*arrays).jaxpr))


@pytest.mark.parametrize("function", [flash_attention, flash_with_logsumexp])
def test_a_policy_keeps_what_the_backward_needs(function, make_qkv):
    """Red when either name is missing: the forward kernel then runs again."""
    arrays = [cut(x, 1) for x in make_qkv(1, 40, 72, 2, 16)]

    def loss(*arrays):
        results = function(*arrays, head_dim=16, num_keys=72, interpret=True)
        return sum(jnp.sin(x).sum() for x in jax.tree.leaves(results))

    def kernels(*kept):
        policy = jax.checkpoint_policies.save_only_these_names(*kept)
        checkpointed = jax.checkpoint(loss, policy=policy)
        return kernels_of(jax.grad(checkpointed, (0, 1, 2)), *arrays)

    forward, backward = "flash_attention_head16", "flash_attention_backward_head16"
    assert kernels(ATTENTION_OUT, ATTENTION_LOGSUMEXP) == [backward, forward]
    assert kernels() == [backward, forward, forward]


@pytest.mark.parametrize("queries", [128, 256, 384])
def test_sums_in_memory_are_there_when_they_are_read(queries, make_qkv, monkeypatch):
    """One, two and three blocks of queries; three of keys; copies end as late as they may.

    Red when a block is read before it is written: with the wait for the copy out left away.
    """
    whole = pl.pallas_call
    late = pltpu.InterpretParams(dma_execution_mode="on_wait")
    query, key, value = make_qkv(1, queries, 384, 1, 16)
    blocks = Blocks(queries=128, keys=128, compute=128, last_compute=128)
    monkeypatch.setattr(
        pl, "pallas_call", lambda *args, **kwargs: whole(*args, **kwargs | {"interpret": late})
    )
    found, _ = errors(query, key, value, *random_gradients(query), 384, blocks=blocks)
    assert max(found.values()) < PARITY, found


@pytest.mark.parametrize("length", [1, 80, 127, 512, 1560, 2049, 9472, 18_944, 75_600, 151_200])
def test_blocks_waste_little(length):
    """Red when a block is not of whole registers, or queries are padded by more than 3%."""
    blocks = choose_backward_blocks(length, length, 2)
    assert blocks.queries % LANES == blocks.keys % blocks.last_compute == 0
    assert blocks.compute % blocks.last_compute == blocks.last_compute % LANES == 0
    assert blocks.compute <= blocks.keys <= MAX_KEYS
    assert blocks.queries <= MAX_QUERIES
    padded = -(-length // blocks.queries) * blocks.queries
    assert padded <= max(1.03 * length, length + LANES - 1)
