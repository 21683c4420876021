"""Our kernel, interpreted, is exact: lengths of every kind, chunks, and scores that jump."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerances import PARITY, relative_error
from wan_tpu.attention import flash_forward
from wan_tpu.attention.flash import flash_attention
from wan_tpu.attention.flash_forward import LANES, Blocks, choose_blocks

SMALL = Blocks(queries=128, keys=512, compute=256, last_compute=128)


def run(num_keys, query, key, value, *, chunks=1, blocks=None):
    """The kernel under jit, interpreted, over tokens cut into `chunks`."""
    head_dim = query.shape[-1]

    def cut(x):
        x = x.reshape(x.shape[0], chunks, x.shape[1] // chunks, -1)
        return x.transpose(1, 0, 2, 3)

    @jax.jit
    def attention(*arrays):
        return flash_attention(
            *arrays, head_dim=head_dim, num_keys=num_keys, blocks=blocks, interpret=True
        )

    out = np.asarray(attention(*map(cut, (query, key, value))))
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
        (8, 8, 1, 1),
    ],
)
def test_is_exact(queries, keys, num_keys, chunks, blocks, make_qkv, spoil, exact):
    """The padding holds NaN.

    Red when `valid` forgets the chunks before, when partial tiles keep all their rows, or when
    padding values are not zeroed.
    """
    query, key, value = make_qkv(2, queries, keys, 2, 16)
    _, key, value = spoil((query, key, value), num_keys, np.nan)
    expected = exact(query, key[:, :num_keys], value[:, :num_keys])
    out = run(num_keys, query, key, value, chunks=chunks, blocks=blocks)
    assert relative_error(out, expected) < PARITY


@pytest.mark.parametrize("head_dim", [64, 128])
def test_head_sizes(head_dim, make_qkv, exact):
    arrays = make_qkv(1, 130, 140, 1, head_dim)
    assert relative_error(run(140, *arrays), exact(*arrays)) < PARITY


@pytest.mark.parametrize("rising", [1, -1], ids=["rising", "falling"])
def test_scores_that_jump_between_blocks(rising, make_qkv, exact):
    """Each block's scores stand hundreds above (or below) those of the one before.

    Rising, a block's sum overflows against the reference of the blocks before, and the block is
    done again: red (infinite) when it is not, or when the sums before are not shrunk to the new
    reference. 1e-3: scores of some 3,000 to 7 digits.
    """
    query, key, value = make_qkv(1, 40, 2048, 1, 16)
    size = np.repeat([1.0, 30.0, 200.0, 1000.0][::rising], 512)[:, None, None]
    key = (key * size).astype(np.float32)
    out = run(2048, query, key, value, blocks=SMALL)
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


@pytest.mark.parametrize("length", [1, 80, 127, 512, 1560, 2049, 9472, 18_944, 75_600, 151_200])
def test_blocks_waste_little(length):
    """Red when a block is not of whole registers, or a long length is padded by more than 3%."""
    blocks = choose_blocks(length, length)
    assert blocks.queries % LANES == blocks.keys % blocks.last_compute == 0
    assert blocks.compute % blocks.last_compute == 0
    assert blocks.last_compute <= blocks.compute <= blocks.keys
    assert blocks.queries <= flash_forward.MAX_QUERIES
    assert blocks.keys <= flash_forward.MAX_KEYS + blocks.last_compute
    for block in (blocks.queries, blocks.keys):
        assert -(-length // block) * block <= max(1.03 * length, length + 255)


def test_blocks_for_720p_over_eight_chips():
    """75,776 tokens come as 8 chunks of 9,472: two blocks of queries, one of keys."""
    assert choose_blocks(9472, 9472) == Blocks(
        queries=4736, keys=9472, compute=1024, last_compute=256
    )
