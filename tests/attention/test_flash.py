"""Our kernel, interpreted, is exact: lengths of every kind, chunks, and scores that jump."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerances import PARITY, relative_error
from wan_tpu.attention.flash import flash_attention, flash_with_logsumexp
from wan_tpu.attention.flash_blocks import CHIPS, LANES, Blocks, Order, block_limits, choose_blocks

SMALL = Blocks(queries=128, keys=512, compute=256, last_compute=128)


def cut(x, chunks):
    """[batch, tokens, heads, head_dim] -> [chunks, batch, chunk, heads * head_dim]."""
    x = x.reshape(x.shape[0], chunks, x.shape[1] // chunks, -1)
    return x.transpose(1, 0, 2, 3)


def run(num_keys, query, key, value, *, chunks=1, blocks=None, device_kind=""):
    """The kernel under jit, interpreted, over tokens cut into `chunks`."""
    head_dim = query.shape[-1]

    @jax.jit
    def attention(*arrays):
        return flash_attention(
            *arrays,
            head_dim=head_dim,
            num_keys=num_keys,
            blocks=blocks,
            interpret=True,
            device_kind=device_kind,
        )

    out = np.asarray(attention(*(cut(x, chunks) for x in (query, key, value))))
    return out.transpose(1, 0, 2, 3).reshape(query.shape)


@pytest.mark.parametrize("blocks", [None, SMALL], ids=["chosen", "small"])
@pytest.mark.parametrize(
    ("queries", "keys", "num_keys", "chunks"),
    [
        (80, 80, 80, 1),  # wan-tiny: less than any block
        (128, 1024, 1024, 1),  # whole blocks and tiles
        (129, 700, 700, 1),  # ends inside a tile
        (200, 768, 641, 1),  # a last tile with one key
        (300, 1300, 1163, 2),  # both chunks end inside a tile
        (260, 520, 130, 4),  # two chunks of padding, and one with no key but its first
        (130, 1280, 1100, 5),  # chunks of whole registers: chosen, all in one block
        (8, 8, 1, 1),
    ],
)
def test_is_exact(queries, keys, num_keys, chunks, blocks, make_qkv, spoil, exact):
    """The padding holds NaN.

    Red when `valid` forgets the chunks before, when the last tile keeps all its rows, when padding
    values are not zeroed, when a tile's last weights are dropped or meet the next tile's values, or
    when what a block before has left is taken into a block without a whole tile.
    """
    query, key, value = make_qkv(2, queries, keys, 2, 16)
    _, key, value = spoil((query, key, value), num_keys, np.nan)
    expected = exact(query, key[:, :num_keys], value[:, :num_keys])
    out = run(num_keys, query, key, value, chunks=chunks, blocks=blocks)
    assert relative_error(out, expected) < PARITY


@pytest.mark.parametrize("queries", [384, 300])
def test_weights_of_a_narrow_last_strip_wait_for_the_next_tile(queries, make_qkv, exact):
    """Strips of 256 and 128 queries. Red when carried weights go to the first strip."""
    arrays = make_qkv(1, queries, 1100, 1, 16)
    order = Order(strip=256)
    blocks = Blocks(queries=384, keys=1152, compute=256, last_compute=128, order=order)
    assert relative_error(run(1100, *arrays, blocks=blocks), exact(*arrays)) < PARITY


@pytest.mark.parametrize("kind", [kind for kind in CHIPS if CHIPS[kind].order != Order()])
@pytest.mark.parametrize(("queries", "keys"), [(1100, 2300), (129, 1025)])
def test_each_chip_s_order_is_exact(kind, queries, keys, make_qkv, spoil, exact):
    """Two strips and two tiles, and lengths that end inside one; the padding holds NaN.

    Red when the first reference is taken of scores less what the memory held before.
    """
    query, key, value = make_qkv(1, queries, keys, 1, 16)
    real = keys - 7
    _, key, value = spoil((query, key, value), real, np.nan)
    out = run(real, query, key, value, device_kind=kind)
    assert relative_error(out, exact(query, key[:, :real], value[:, :real])) < PARITY


@pytest.mark.parametrize(("behind", "subtracts"), [(1, False), (2, True), (4, False)])
def test_units_of_some_of_a_tile_s_keys(behind, subtracts, make_qkv, exact):
    """Four units a strip, the last strip narrow, three tiles and a small one.

    Red when values are turned before the tile before is done with theirs, or when a carried unit
    meets another's values.
    """
    arrays = make_qkv(1, 300, 1600, 1, 16)
    order = Order(strip=256, unit=128, behind=behind, subtracts=subtracts)
    blocks = Blocks(queries=384, keys=1664, compute=512, last_compute=128, order=order)
    assert relative_error(run(1600, *arrays, blocks=blocks), exact(*arrays)) < PARITY


@pytest.mark.parametrize("num_keys", [1024, 900, 3])
def test_chunks_fetched_together(num_keys, make_qkv, spoil, exact):
    """Three chunks of four, then one and nothing. Red when a block's keys begin a chunk early."""
    arrays = make_qkv(2, 128, 1024, 1, 16)
    _, key, value = spoil(arrays, num_keys, np.nan)
    blocks = Blocks(queries=128, keys=256, compute=256, last_compute=128, key_chunks=3)
    out = run(num_keys, arrays[0], key, value, chunks=4, blocks=blocks)
    assert relative_error(out, exact(arrays[0], key[:, :num_keys], value[:, :num_keys])) < PARITY


@pytest.mark.parametrize("head_dim", [64, 128])
def test_head_sizes(head_dim, make_qkv, exact):
    arrays = make_qkv(1, 130, 140, 1, head_dim)
    assert relative_error(run(140, *arrays), exact(*arrays)) < PARITY


@pytest.mark.parametrize("subtracts", [False, True])
@pytest.mark.parametrize("rising", [1, -1], ids=["rising", "falling"])
def test_scores_that_jump_between_blocks(rising, subtracts, make_qkv, exact):
    """Each block's scores stand hundreds above (or below) those of the one before.

    Rising, a block's sum overflows against the reference of the blocks before, and the block is
    done again: red (infinite) when it is not, or when the sums before are not shrunk to the new
    reference. 1e-3: scores of some 3,000 to 7 digits.
    """
    query, key, value = make_qkv(1, 40, 2048, 1, 16)
    size = np.repeat([1.0, 30.0, 200.0, 1000.0][::rising], 512)[:, None, None]
    key = (key * size).astype(np.float32)
    blocks = dataclasses.replace(SMALL, order=Order(subtracts=subtracts))
    out = run(2048, query, key, value, blocks=blocks)
    assert relative_error(out, exact(query, key, value)) < 1e-3


def test_a_block_done_again_keeps_queries_that_were_well(make_qkv, exact):
    """Half of the queries see the jump, half see scores fall by as much.

    Red when the second attempt takes the block's maximum where the reference is above it.
    """
    query, key, value = make_qkv(1, 40, 1024, 1, 16)
    query[:, :20, :, 0], query[:, 20:, :, 0] = 30, -30
    key[:, 512:, :, 0] += 100
    out = run(1024, query, key, value, blocks=SMALL)
    assert relative_error(out, exact(query, key, value)) < 1e-3


def test_a_value_that_is_not_a_number_stays_in_its_query(make_qkv, exact):
    """A block that never comes in range is tried twice, not for ever."""
    query, key, value = make_qkv(1, 40, 300, 1, 16)
    expected = exact(query, key, value)
    query[:, 7] = np.nan
    out = run(300, query, key, value, blocks=SMALL)
    assert np.isnan(out[:, 7]).all()
    others = np.arange(40) != 7
    assert relative_error(out[:, others], expected[:, others]) < PARITY


def test_bfloat16_loses_what_rounding_loses(make_qkv, exact):
    """2e-2: scaled queries, weights and results are each rounded to 8 bits, 2^-8 = 4e-3."""
    arrays = make_qkv(1, 130, 1300, 2, 128, dtype=jnp.bfloat16)
    out = run(1300, *arrays, blocks=SMALL)
    assert out.dtype == jnp.bfloat16
    assert relative_error(out, exact(*arrays)) < 2e-2


def test_sums_in_bfloat16_lose_no_more_than_weights_do(make_qkv):
    """Weights are rounded to 8 bits, then their pairs: 1.2e-4 of a sum of a thousand, at random.

    1.4e-4: four at a time would lose 1.7e-4, and are red. XLA must round as often as it is told.
    """
    query, key, value = make_qkv(1, 128, 1024, 1, 16, dtype=jnp.bfloat16)
    attention = jax.jit(
        functools.partial(
            flash_with_logsumexp, head_dim=16, num_keys=1024, interpret=True, blocks=SMALL
        ),
        compiler_options={"xla_allow_excess_precision": False},
    )
    _, logsumexp = attention(*(cut(x, 1) for x in (query, key, value)))
    # Queries as the kernel rounds them, which is after the scale.
    scaled = query.astype(np.float32) * (16**-0.5 * math.log2(math.e))
    scaled = scaled.astype(jnp.bfloat16).astype(np.float64)
    scores = scaled[0, :, 0] @ key.astype(np.float64)[0, :, 0].T
    expected = np.log(np.exp2(scores).sum(axis=1))
    assert np.abs(np.asarray(logsumexp)[0, 0] - expected).mean() < 1.4e-4


@pytest.mark.parametrize("kind", ["TPU v6 lite", "TPU7x"])
@pytest.mark.parametrize("length", [1, 80, 127, 512, 1560, 2049, 9472, 18_944, 75_600, 151_200])
def test_blocks_waste_little(length, kind):
    """Red when a block is not of whole registers, or a long length is padded by more than 3%."""
    limits = block_limits(kind)
    blocks = choose_blocks(length, 1, length, limits=limits)
    assert blocks.queries % LANES == blocks.keys % blocks.last_compute == 0
    assert blocks.compute % blocks.last_compute == 0
    assert blocks.last_compute <= blocks.compute <= blocks.keys
    assert blocks.queries <= limits.queries
    assert blocks.keys <= limits.keys + blocks.compute
    for block in (blocks.queries, blocks.keys):
        assert -(-length // block) * block <= max(1.03 * length, length + 511)


@pytest.mark.parametrize(
    ("kind", "itemsize", "chunks", "chunk", "keys", "key_chunks"),
    [
        ("TPU v6 lite", 2, 8, 9472, 9472, 4),  # 720p, 81 frames, sp8: two blocks of keys
        ("TPU v6 lite", 2, 4, 18_944, 18_944, 2),
        ("TPU v6 lite", 2, 1, 75_600, 37_888, 1),
        ("TPU v6 lite", 4, 8, 9472, 9472, 2),
        ("TPU7x", 2, 8, 9472, 9472, 2),
        ("", 2, 8, 4096, 4096, 8),  # 480p: one block
        ("", 2, 3, 9472, 9728, 1),  # three of them are no whole number of small tiles
        ("", 2, 16, 4725, 5120, 1),  # chunks that do not end with a register
        ("", 2, 1, 512, 512, 1),
    ],
)
def test_blocks_of_keys(kind, itemsize, chunks, chunk, keys, key_chunks):
    """Red when a block is beyond its memory, or ends inside a small tile."""
    limits = block_limits(kind)
    blocks = choose_blocks(9472, chunks, chunk, limits=limits, itemsize=itemsize)
    assert (blocks.keys, blocks.key_chunks) == (keys, key_chunks)
    assert blocks.all_keys % blocks.last_compute == 0
    assert blocks.all_keys * itemsize <= limits.keys * 2
    assert blocks.queries * itemsize <= limits.queries * 2
