"""The Pallas kernel, interpreted, is exact, for lengths of every kind."""

import functools
import re
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerances import PARITY, relative_error
from wan_tpu.attention import splash, splash_backward
from wan_tpu.attention.reference import reference_attention
from wan_tpu.attention.splash import splash_attention
from wan_tpu.attention.splash_padding import FirstKeys
from wan_tpu.attention.splash_tiles import (
    NARROW_TILES,
    WIDE_TILES,
    choose_tiling,
    padded_length,
    tiles_for,
)

TILES = pytest.mark.parametrize("tiles", [WIDE_TILES, NARROW_TILES], ids=["wide", "narrow"])


def run(tiles, num_keys, *arrays):
    """The kernel under jit, interpreted."""

    @jax.jit
    def attention(query, key, value):
        return splash_attention(query, key, value, num_keys=num_keys, tiles=tiles, interpret=True)

    return attention(*arrays)


@TILES
@pytest.mark.parametrize(
    ("queries", "keys", "num_keys"),
    [
        (80, 80, 80),  # wan-tiny: less than any tile
        (256, 256, 256),  # nothing to pad
        (129, 700, 700),  # nothing to cut off
        (130, 500, 450),  # padding that does not reach the tile: cut off
        (200, 768, 641),  # padding that reaches it: overwritten in place
        (1, 1, 1),
    ],
)
def test_is_exact(queries, keys, num_keys, tiles, make_qkv, spoil, exact):
    """The padding holds NaN.

    Red when `PADDING_SCORE` is 0, when `_KeysBefore` compares with `<=`, when `only_real` does
    not cut or overwrites nothing, or when the key is not scaled.
    """
    query, key, value = make_qkv(2, queries, keys, 2, 16)
    _, key, value = spoil((query, key, value), num_keys, np.nan)
    expected = exact(query, key[:, :num_keys], value[:, :num_keys])
    assert relative_error(run(tiles, num_keys, query, key, value), expected) < PARITY


@TILES
def test_padding_is_not_attended_when_every_score_is_low(tiles, make_qkv, exact):
    """Scores of -1,000 and less: padding at 0 would take the whole softmax.

    Red when padding keys are only zeros, as they are before `set_feature`.
    """
    query, key, value = make_qkv(1, 40, 130, 2, 16)
    query, key = np.abs(query) + 40, -np.abs(key) - 10
    expected = exact(query, key, value)
    assert relative_error(run(tiles, 130, query, key, value), expected) < 1e-3  # scores to 7 digits


@TILES
@pytest.mark.parametrize("head_dim", [64, 128])
def test_head_sizes(head_dim, tiles, make_qkv, exact):
    """128 leaves no room in a register for the padding feature: red when it takes the last one."""
    query, key, value = make_qkv(1, 130, 140, 1, head_dim)
    expected = exact(query, key, value)
    assert relative_error(run(tiles, 140, query, key, value), expected) < PARITY


@TILES
@pytest.mark.parametrize(
    ("queries", "keys", "num_keys", "partial_bytes"),
    [
        (80, 80, 80, None),  # wan-tiny: less than any tile
        (129, 700, 700, None),
        (200, 768, 641, 1),  # padding that reaches the tile; each block of keys a part of its own
        (128, 640, 640, 1),  # nothing to pad, five parts
    ],
)
def test_gradients(queries, keys, num_keys, partial_bytes, tiles, make_qkv, spoil, monkeypatch):
    """The padding holds NaN; its gradients are zero. By the reference's own derivative.

    Scores are -144 and less, so that a padding key of zeros, if it had a weight, had an infinite
    one; 1e-4, for scores of some hundreds have 7 digits. Red when the last part compares with
    `num_keys` and not with what is left of it, when parts come back in another order, or when the
    gradient of the scaled key is not scaled.
    """
    if partial_bytes:
        monkeypatch.setattr(splash_backward, "PARTIAL_BYTES", partial_bytes)
    arrays = make_qkv(2, queries, keys, 1, 16)
    weights = np.random.default_rng(7).standard_normal(arrays[0].shape, np.float32)

    def gradients(function, *arrays):
        loss = lambda *arrays: (function(*arrays) * weights).sum()  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1, 2)))(*arrays)

    query, key, value = arrays = arrays[0] + 6, arrays[1] - 6, arrays[2]
    expected = gradients(reference_attention, query, key[:, :num_keys], value[:, :num_keys])
    _, key, value = spoil(arrays, num_keys, np.nan)
    function = functools.partial(splash_attention, num_keys=num_keys, tiles=tiles, interpret=True)
    for found, exact in zip(gradients(function, query, key, value), expected, strict=True):
        assert relative_error(found[:, : exact.shape[1]], exact) < 1e-4
        assert not np.asarray(found[:, exact.shape[1] :]).any()


def test_parts_are_as_large_as_the_limit_allows():
    """14B at 720p, five heads on a v6e: 97 MB for each of 37 blocks of keys; five blocks a part.

    Red when shares of all blocks are held at once: 3.6 GB.
    """
    array = jax.ShapeDtypeStruct((1, 75_600, 5, 128), jnp.bfloat16)
    logsumexp = jax.ShapeDtypeStruct((1, 5, 75_600), jnp.float32)
    backward = functools.partial(
        splash_backward.splash_backward, num_keys=75_600, tiles=WIDE_TILES.backward, interpret=False
    )
    program = str(jax.make_jaxpr(backward)(array, array, array, array, logsumexp, array))
    shares = {int(count) for count in re.findall(r"bf16\[(\d+),5,75776,128\]", program)}
    assert max(shares) == 5


def test_tiles_are_those_measured_for_720p():
    wide, narrow = (choose_tiling(75_600, 75_600, tiles) for tiles in (WIDE_TILES, NARROW_TILES))
    assert (wide.query_block, wide.key_tile.block, wide.key_tile.compute) == (2048, 2048, 1024)
    assert (narrow.query_block, narrow.key_tile.block, narrow.key_tile.compute) == (2048, 1024, 256)
    assert wide.padded_queries == wide.padded_keys == narrow.padded_keys == 75_776


@TILES
@pytest.mark.parametrize("length", [1, 80, 127, 512, 1560, 2049, 18_900, 32_760, 75_600, 151_200])
def test_tiles_fit_and_waste_little(length, tiles):
    """Red when a tile is not a multiple of the register width or a long length is padded by 15%."""
    tiling = choose_tiling(length, length, tiles)
    assert tiling.query_block % 128 == tiling.key_tile.block % tiling.key_tile.compute == 0
    for padded, block in (
        (tiling.padded_queries, tiling.query_block),
        (tiling.padded_keys, tiling.key_tile.block),
    ):
        assert padded % block == 0
        assert length <= padded < length + block
        assert padded <= max(1.15 * length, 2048)


@TILES
@pytest.mark.parametrize("length", [80, 1560, 7800, 20_280, 32_760, 75_600, 151_200])
def test_backward_tiles_fit(length, tiles):
    """Red when a length is no multiple of its tile: the kernel leaves the rest out in silence."""
    tiling = choose_tiling(length, length, tiles.backward)
    assert tiling.query_block % 128 == tiling.key_tile.block % tiling.key_tile.compute == 0
    assert tiling.padded_queries % tiling.query_block == 0
    assert tiling.padded_keys % tiling.key_tile.block == 0
    assert length <= min(tiling.padded_queries, tiling.padded_keys)
    assert max(tiling.padded_queries, tiling.padded_keys) <= max(1.15 * length, 2048)


@TILES
@pytest.mark.parametrize("length", [80, 1560, 7800, 20_280, 32_760, 75_600, 151_200])
def test_a_padded_length_is_padded_no_further(length, tiles):
    padded = padded_length(length, tiles)
    tiling = choose_tiling(padded, length, tiles)
    assert tiling.padded_queries == tiling.padded_keys == padded


def test_chips():
    assert tiles_for("TPU v6 lite") is WIDE_TILES
    for kind in ("TPU v5 lite", "TPU v5", "TPU v4", "cpu"):
        assert tiles_for(kind) is NARROW_TILES


@TILES
@pytest.mark.parametrize("compared", [None, 75_600], ids=["all", "compared"])
def test_masks_are_cheap_to_make(compared, tiles):
    """No tile of 2 or 4 MB is made on the host, and the tables that go to SMEM stay small.

    Splash's own FullMask makes 1,369 tiles, three times over. Red when `AllKeys` or `FirstKeys`
    answers whole tiles.
    """
    tiling = choose_tiling(75_600, 75_600, tiles)
    splash._kernel(40, choose_tiling(80, 80, tiles), compared, interpret=False)  # imports, caches
    tracemalloc.start()
    kernel = splash._kernel(40, tiling, compared, interpret=False)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1.5e6
    tables = kernel.fwd_mask_info
    assert tables.block_mask is not None
    assert tables.data_next is not None
    assert tables.block_mask.nbytes + tables.data_next.nbytes < 10_000
    assert tables.partial_mask_blocks is None


def test_equal_masks_are_one_program():
    """The kernel is static in its mask function. Red when `mask_function` gives a closure."""
    first, second = (FirstKeys((384, 512), 300) for _ in range(2))
    assert first == second
    assert first.mask_function == second.mask_function
    assert hash(first.mask_function) == hash(second.mask_function)
