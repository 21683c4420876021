"""Gradients of every implementation on every way to share the sequence are the reference's."""

import functools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from tests.attention.test_sequence_parallel import make, merge_heads, place
from tests.tolerances import PARITY, relative_error
from wan_tpu.attention.api import (
    attend,
    attend_chunks_backward,
    attend_with_logsumexp,
)
from wan_tpu.attention.names import (
    ATTENTION_LOGSUMEXP,
    ATTENTION_OUT,
    EXACT_INSTEAD,
    IMPLEMENTATIONS,
)
from wan_tpu.attention.reference import reference_attention, reference_with_logsumexp
from wan_tpu.attention.sequence_parallel import (
    cross_attend,
    group_heads,
    sharded_attend,
    ungroup_heads,
)

CONCRETE = [name for name in IMPLEMENTATIONS if name not in ("auto", *EXACT_INSTEAD)]
NAMES = pytest.mark.parametrize("name", CONCRETE)
BFLOAT16 = 2e-2
"""Scores, weights, results and gradients are rounded to 8 bits each, 4e-3, and the gradient of a
score is a difference of two numbers that were."""


@pytest.fixture(scope="session")
def make_weights():
    """What the result is multiplied by, standard normal in float32; zero from `real` on."""

    def weights(shape, real=None):
        values = np.random.default_rng(7).standard_normal(shape, np.float32)
        values[:, real if real is not None else shape[1] :] = 0
        return values

    return weights


def gradients(function, weights, arrays):
    """Of the sum of `weights` times the result, one or several arrays, for each of `arrays`."""

    def loss(*arrays):
        parts = zip(jax.tree.leaves(weights), jax.tree.leaves(function(*arrays)), strict=True)
        return sum((weight * part.astype(jnp.float32)).sum() for weight, part in parts)

    return jax.jit(jax.grad(loss, range(len(arrays))))(*arrays)


def expected_gradients(weights, arrays, function=reference_attention):
    """By JAX's derivative of the reference, in float32."""
    return gradients(function, weights, [np.asarray(x, np.float32) for x in arrays])


def check(found, expected, tolerance=PARITY):
    """Gradients are right as far as the expected ones go, and exactly zero after."""
    for name, one, other in zip("qkv", found, expected, strict=True):
        real = other.shape[1]
        assert relative_error(one[:, :real], other) < tolerance, name
        assert not np.asarray(one[:, real:], np.float32).any(), name


@NAMES
def test_every_implementation(name, make_qkv, spoil, make_weights):
    """40 queries and 61 keys, of 72: neither divides by a tile. The rest of the keys is NaN.

    Red when padding is cut off from keys and not from values, when the key is not scaled, or the
    mean gradient not subtracted.
    """
    query, key, value = make_qkv(2, 40, 72, 3, 16)
    _, key, value = spoil((query, key, value), 61, np.nan)
    weights = make_weights(query.shape)
    function = functools.partial(attend, implementation=name, num_keys=61)
    expected = expected_gradients(weights, (query, key[:, :61], value[:, :61]))
    check(gradients(function, weights, (query, key, value)), expected)


@pytest.mark.parametrize("name", ["chunked", "splash"])
def test_bfloat16(name, make_qkv, make_weights):
    arrays = make_qkv(1, 130, 140, 2, 16, dtype=jnp.bfloat16)
    weights = make_weights(arrays[0].shape)
    found = gradients(functools.partial(attend, implementation=name), weights, arrays)
    assert {x.dtype for x in found} == {jnp.dtype(jnp.bfloat16)}
    check(found, expected_gradients(weights, arrays), BFLOAT16)


@pytest.mark.parametrize("name", ["chunked", "splash"])
def test_logsumexp_has_a_gradient(name, make_qkv, make_weights):
    """Red when `d_logsumexp` is dropped or added with the other sign."""
    arrays = make_qkv(2, 24, 40, 2, 16)
    weights = make_weights(arrays[0].shape), make_weights((2, 2, 24))
    function = functools.partial(attend_with_logsumexp, implementation=name)
    expected = expected_gradients(weights, arrays, reference_with_logsumexp)
    check(gradients(function, weights, arrays), expected)


@NAMES
def test_some_of_the_keys_give_their_part(name, make_qkv, make_weights):
    """Two parts of the keys, as a ring brings them; the second's last 12 are padding, NaN.

    Red when a part's own logsumexp takes the place of all keys'.
    """
    query, key, value = make_qkv(2, 40, 36, 3, 16)
    weights = make_weights(query.shape)
    out, logsumexp = jax.jit(reference_with_logsumexp)(query, key, value)
    last = [np.concatenate([x[:, 24:], np.full_like(x[:, :12], np.nan)], 1) for x in (key, value)]

    def part(key, value, num_keys):
        backward = functools.partial(
            attend_chunks_backward, head_dim=16, implementation=name, num_keys=num_keys
        )
        *chunks, d_out = (merge_heads(x)[None] for x in (query, key, value, out, weights))
        found = jax.jit(backward)(*chunks, logsumexp, d_out)
        return [np.asarray(x).reshape(2, -1, 3, 16) for x in found]

    first, second = part(key[:, :24], value[:, :24], 24), part(last[0], last[1], 12)
    d_keys = [np.concatenate(parts, 1) for parts in zip(first[1:], second[1:], strict=True)]
    check([first[0] + second[0], *d_keys], expected_gradients(weights, (query, key, value)))


def self_attention(layout, mesh, name, num_keys, shape):
    """Sharded self-attention of arrays of `shape`."""

    def attention(*arrays):
        attended = sharded_attend(
            *(group_heads(merge_heads(x), mesh=mesh, layout=layout) for x in arrays),
            head_dim=shape[-1],
            mesh=mesh,
            layout=layout,
            implementation=name,
            num_keys=num_keys,
        )
        return ungroup_heads(attended, mesh=mesh).reshape(shape)

    return attention


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("text", "way", "name"),
    [
        ("dp2-sp2-tp2", "ulysses", "chunked"),
        ("dp2-sp2-tp2", "allgather", "chunked"),
        ("dp2-sp2-tp2", "ring", "chunked"),
        ("sp8", "ulysses", "chunked"),
        ("sp4", "allgather", "chunked"),
        ("sp8", "ring", "chunked"),
        ("sp4", "ring", "reference"),
        ("sp4", "ulysses", "dot_product"),
        ("dp2-sp2-tp2", "ulysses", "splash"),
        ("dp2-sp2-tp2", "ring", "splash"),
        ("sp4", "ring", "flash"),
        *(
            pytest.param(text, way, name, marks=SLOW)
            for text in ("dp2-sp2-tp2", "sp8", "sp4-tp2", "tp8")
            for way in ("ulysses", "allgather", "ring")
            for name in ("splash", "flash", "chunked")
        ),
    ],
)
def test_every_layout(text, way, name, devices, make_qkv, spoil, make_weights):
    """88 tokens of which 61 are real: with sp8 shard 5 holds both kinds, those after it padding.

    Garbage in the padding, of queries, too. Red when a ring's gradients are not sent home (with
    one transfer less they are the neighbour's), when keys move on and their gradients do not, or
    when `num_keys` does not reach a shard.
    """
    layout, mesh = make(text, way, devices)
    arrays = make_qkv(2, 88, 88, 8, 16)
    expected = expected_gradients(make_weights((2, 61, 8, 16)), [x[:, :61] for x in arrays])
    weights = make_weights(arrays[0].shape, 61)
    weights[:, :61] = make_weights((2, 61, 8, 16))
    arrays = place(spoil(arrays, 61, 1e4), mesh, "dp", "sp", "tp")
    found = gradients(self_attention(layout, mesh, name, 61, (2, 88, 8, 16)), weights, arrays)
    check(found, expected)


def test_nan_in_padding_queries(devices, make_qkv, spoil, make_weights):
    """Their result has no gradient, so they give nothing: red where 0 x NaN is NaN."""
    layout, mesh = make("sp4", "ring", devices)
    arrays = make_qkv(1, 40, 40, 2, 16)
    expected = expected_gradients(make_weights((1, 30, 2, 16)), [x[:, :30] for x in arrays])
    weights = make_weights(arrays[0].shape, 30)
    weights[:, :30] = make_weights((1, 30, 2, 16))
    arrays = spoil(arrays, 30, np.nan)
    found = gradients(self_attention(layout, mesh, "chunked", 30, (1, 40, 2, 16)), weights, arrays)
    check(found, expected)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("dp2-sp2-tp2", "chunked"),
        ("sp8", "chunked"),
        ("dp2-sp2-tp2", "splash"),
        pytest.param("dp2-sp2-tp2", "flash", marks=SLOW),
        pytest.param("sp8", "splash", marks=SLOW),
        pytest.param("sp8", "flash", marks=SLOW),
    ],
)
def test_keys_of_cross_attention_take_from_every_shard(text, name, devices, make_qkv, make_weights):
    """Their gradient is the sum over sp, each shard counted once, and every shard gets it.

    Red when it is one shard's part, or sp times as much.
    """
    layout, mesh = make(text, "ulysses", devices)
    arrays = make_qkv(2, 88, 61, 8, 16)
    weights = make_weights(arrays[0].shape)
    expected = expected_gradients(weights, arrays)
    query, *keys = arrays
    arrays = place([query], mesh, "dp", "sp", "tp") + place(keys, mesh, "dp", None, "tp")

    def attention(*arrays):
        attended = cross_attend(
            *(merge_heads(x)[None] for x in arrays),
            head_dim=16,
            mesh=mesh,
            layout=layout,
            implementation=name,
        )
        return attended.reshape(query.shape)

    found = gradients(attention, weights, arrays)
    check(found, expected)
    for one in found[1:]:
        by_index = {}
        for shard in one.addressable_shards:
            by_index.setdefault(str(shard.index), []).append(np.asarray(shard.data))
        for copies in by_index.values():
            for copy in copies:
                np.testing.assert_array_equal(copy, copies[0])


def count(closed_jaxpr, primitive):
    """How often a primitive stands in a program; XLA drops what nobody uses."""

    def inside(jaxpr):
        read = (x for equation in jaxpr.eqns for x in equation.invars)
        used = {id(x) for x in (*jaxpr.outvars, *read)}
        for equation in jaxpr.eqns:
            if used.isdisjoint(map(id, equation.outvars)):
                continue
            yield equation.primitive.name
            if equation.primitive.name != "pallas_call":
                for inner in jax.extend.core.jaxprs_in_params(equation.params):
                    yield from inside(inner)

    return list(inside(closed_jaxpr.jaxpr)).count(primitive)


@pytest.mark.parametrize(
    ("text", "way", "name", "primitive", "once"),
    [
        ("sp4", "ulysses", "chunked", "reduce_max", 1),
        ("sp4", "ring", "chunked", "reduce_max", 2),
        ("sp4", "ulysses", "splash", "pallas_call", 1 + 1),
        ("sp4", "ring", "splash", "pallas_call", 2 + 1),  # its last turn is written out
        ("sp4", "ulysses", "flash", "pallas_call", 1 + 1),
        ("sp4", "ring", "flash", "pallas_call", 2 + 1),
    ],
)
def test_the_forward_runs_once(text, way, name, primitive, once, devices, make_qkv):
    """With its result and logsumexp kept; a policy that keeps nothing runs it again.

    Red when one of them has another name or none, or when what is named is not what goes on.
    """
    layout, mesh = make(text, way, devices)
    arrays = make_qkv(2, 88, 88, 4, 16)
    attention = self_attention(layout, mesh, name, None, arrays[0].shape)

    def layer(*arrays):
        return jnp.sin(attention(*(x * 2 for x in arrays)))

    def found(policy):
        kept = jax.checkpoint(layer, policy=policy)
        program = jax.make_jaxpr(jax.grad(lambda *x: kept(*x).sum(), (0, 1, 2)))(*arrays)
        return count(program, primitive)

    policies = jax.checkpoint_policies
    forward = once if primitive == "reduce_max" else once - 1
    assert found(policies.save_only_these_names(ATTENTION_OUT, ATTENTION_LOGSUMEXP)) == once
    assert found(policies.nothing_saveable) == once + forward
