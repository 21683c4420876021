"""Every implementation behind `attend` gives what the reference means."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerances import PARITY, relative_error
from wan_tpu.attention import api, flash_forward
from wan_tpu.attention.api import attend
from wan_tpu.attention.flash_blocks import block_limits
from wan_tpu.attention.names import EXACT_INSTEAD, IMPLEMENTATIONS
from wan_tpu.attention.resolve import resolve_implementation
from wan_tpu.errors import InputError, UnknownNameError

BFLOAT16 = 2e-2
"""bfloat16: weights and results rounded to 8 bits, 2^-8 = 4e-3 each, and splash's scaled keys."""

OTHERS = [name for name in IMPLEMENTATIONS if name not in ("auto", "reference", *EXACT_INSTEAD)]
"""That should be as exact as the reference."""


def test_reference_is_the_definition(make_qkv, exact):
    """Red without the scale, or with the softmax over queries."""
    arrays = make_qkv(2, 5, 7, 3, 16)
    run = jax.jit(lambda *x: attend(*x, implementation="reference"))
    assert relative_error(run(*arrays), exact(*arrays)) < PARITY


@pytest.mark.parametrize("name", [*OTHERS, "auto"])
def test_every_implementation_is_exact(name, make_qkv, exact):
    """Red without the scale in `chunked` or in `splash`."""
    arrays = make_qkv(2, 40, 72, 3, 16)
    run = jax.jit(lambda *x: attend(*x, implementation=name))
    assert relative_error(run(*arrays), exact(*arrays)) < PARITY


@pytest.mark.parametrize("what", [1e4, 3e38, np.nan], ids=str)
@pytest.mark.parametrize("name", ["reference", *OTHERS])
def test_padding_is_never_attended(name, what, make_qkv, spoil, exact):
    """Whatever the padding holds, the answer is that of the real keys alone.

    Red when `attend` does not cut `key`, or, for NaN, when it only masks the scores.
    """
    query, key, value = make_qkv(1, 40, 72, 2, 16)
    real = exact(query, key[:, :61], value[:, :61])
    _, key, value = spoil((query, key, value), 61, what)
    padded = jax.jit(lambda *x: attend(*x, implementation=name, num_keys=61))(query, key, value)
    assert relative_error(padded, real) < PARITY


@pytest.mark.parametrize("name", ["reference", *OTHERS])
def test_bfloat16_in_bfloat16_out_float32_between(name, make_qkv, exact):
    """1,024 equal weights: a bfloat16 count stops at 256. Red when the result is not cast back."""
    query, key, value = make_qkv(1, 8, 1024, 2, 16, dtype=jnp.bfloat16)
    query = query * 0  # every key weighs the same, so the sum of weights is 1,024
    value = value + 1  # and the mean is about 1
    out = jax.jit(lambda *x: attend(*x, implementation=name))(query, key, value)
    assert out.dtype == jnp.bfloat16
    assert relative_error(out, exact(query, key, value)) < BFLOAT16


@pytest.mark.parametrize("name", ["reference", *OTHERS])
def test_large_scores_do_not_overflow(name, make_qkv, exact):
    """Scores of some 3,000: red when an exponential is taken before the maximum is subtracted."""
    query, key, value = make_qkv(1, 16, 40, 2, 16)
    query = query * 1000
    out = jax.jit(lambda *x: attend(*x, implementation=name))(query, key, value)
    assert relative_error(out, exact(query, key, value)) < 1e-3  # scores of 3,000 to 7 digits


@pytest.mark.parametrize(
    ("platform", "dtype", "head_dim", "expected"),
    [
        ("tpu", None, None, "flash"),
        ("tpu", jnp.bfloat16, 16, "splash"),  # wan-tiny's heads are not whole registers
        ("cpu", None, None, "chunked"),
        ("gpu", None, None, "dot_product"),
        ("cuda", jnp.bfloat16, 128, "dot_product"),
        ("gpu", jnp.float32, 128, "chunked"),  # cuDNN takes 16-bit types only
        ("gpu", jnp.bfloat16, 12, "chunked"),  # and head sizes that are multiples of 8
    ],
)
def test_auto_is_what_keeps_memory_flat(platform, dtype, head_dim, expected):
    """Red when a GPU gets `dot_product` in float32, where XLA holds the score matrix."""
    assert resolve_implementation("auto", platform, dtype=dtype, head_dim=head_dim) == expected
    for name in ("reference", *OTHERS):
        assert resolve_implementation(name, platform, dtype=dtype, head_dim=head_dim) == name


@pytest.mark.parametrize(
    ("kind", "alone", "with_gradient"),
    [
        ("TPU v6 lite", "flash", "flash"),
        ("TPU7x", "flash", "flash"),
        ("TPU v5", "flash", "splash"),
        ("TPU v5 lite", "flash", "splash"),
        ("TPU v4", "splash", "splash"),  # no blocks of flash for its memory
    ],
)
def test_auto_goes_by_the_chip(kind, alone, with_gradient):
    """Matrix units 128 wide take flash, but not its gradient."""
    auto = functools.partial(resolve_implementation, "auto", "tpu", device_kind=kind)
    assert (auto(), auto(gradient=True)) == (alone, with_gradient)
    assert auto(head_dim=16) == "splash"


@pytest.mark.parametrize(
    ("device_kind", "head_dim", "words"),
    [
        ("TPU7x", 128, "matrix units that multiply int8, and a TPU7x has none; flash runs there"),
        ("TPU v6 lite", 16, "heads of 128 features, not of 16; auto takes any"),
    ],
)
def test_int8_is_chosen_by_name_alone_and_refused_where_it_cannot_run(device_kind, head_dim, words):
    """Red when `auto` may become it, or when a chip without int8 finds out in its compiler."""
    how = {"device_kind": device_kind, "head_dim": head_dim}
    with pytest.raises(InputError, match=words):
        resolve_implementation("flash-int8", "tpu", **how)
    assert resolve_implementation("auto", "tpu", **how) in ("flash", "splash")
    assert resolve_implementation("flash-int8", "tpu", head_dim=128) == "flash-int8"
    assert resolve_implementation("flash-int8", "cpu", head_dim=16) == "flash-int8"


def test_unknown_name_names_those_that_exist(make_qkv):
    with pytest.raises(
        UnknownNameError, match=r"unknown attention 'flash9'; known: auto, reference"
    ):
        attend(*map(jnp.asarray, make_qkv(1, 4, 4, 1, 8)), implementation="flash9")


@pytest.mark.parametrize(
    ("platform", "dtype", "expected"),
    [
        ("gpu", jnp.bfloat16, "cudnn"),
        ("gpu", jnp.float32, "xla"),
        ("cpu", jnp.bfloat16, "xla"),
    ],
)
def test_dot_product_asks_for_cudnn_by_name(platform, dtype, expected, make_qkv, monkeypatch):
    """JAX's default is XLA even on a GPU. Red when `implementation` is left to it."""
    asked = []

    def record(query, key, value, *, implementation):
        asked.append(implementation)
        return query

    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    device = types.SimpleNamespace(platform=platform, device_kind="a card")
    arrays = map(jnp.asarray, make_qkv(1, 4, 4, 1, 8, dtype=dtype))
    attend(*arrays, implementation="dot_product", device=device)
    assert asked == [expected]


@pytest.mark.parametrize(
    ("platform", "interpret", "expected"),
    [("tpu", None, False), ("cpu", None, True), ("tpu", True, True), ("cpu", False, False)],
)
def test_kernels_are_interpreted_off_a_tpu(platform, interpret, expected, make_qkv, monkeypatch):
    """The device decides, not this process's backend. Red when `jax.default_backend()` does."""
    asked = []

    def record(query, key, value, *, num_keys, tiles, interpret):
        asked.append(interpret)
        return query

    monkeypatch.setattr(api, "splash_attention", record)
    device = types.SimpleNamespace(platform=platform, device_kind="a chip")
    arrays = map(jnp.asarray, make_qkv(1, 4, 4, 1, 8))
    attend(*arrays, implementation="splash", interpret=interpret, device=device)
    assert asked == [expected]


@pytest.mark.parametrize("logsumexp", [False, True], ids=["alone", "with logsumexp"])
@pytest.mark.parametrize("chunks", [False, True], ids=["joined", "chunks"])
def test_flash_takes_the_blocks_of_the_chip(chunks, logsumexp, monkeypatch):
    """Red when the chip is forgotten on the way: a v7x has half of a v6e's memory for blocks."""
    limits, choose = [], flash_forward.choose_blocks

    def choose_blocks(*lengths, **settings):
        limits.append(settings["limits"])
        return choose(*lengths, **settings)

    monkeypatch.setattr(flash_forward, "choose_blocks", choose_blocks)
    device = types.SimpleNamespace(platform="cpu", device_kind="TPU7x")
    names = {True: "attend_chunks", False: "attend"}
    run = getattr(api, names[chunks] + "_with_logsumexp" * logsumexp)
    head_dim = {"head_dim": 128} if chunks else {}
    array = jax.ShapeDtypeStruct((1, 1, 1030, 128) if chunks else (1, 1030, 1, 128), jnp.bfloat16)
    jax.eval_shape(
        lambda *x: run(*x, implementation="flash", device=device, **head_dim), *[array] * 3
    )
    assert limits == [block_limits("TPU7x")]
