"""Flash over some tiles of keys: all are the dense kernel, others the masked reference."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tolerances import PARITY, relative_error
from wan_tpu.attention.flash import flash_attention
from wan_tpu.attention.flash_blocks import Blocks, Order
from wan_tpu.attention.flash_sparse import flash_sparse_attention, step_numbers
from wan_tpu.attention.sparse_tiles import ActiveTiles
from wan_tpu.errors import InputError

BLOCKS = Blocks(queries=128, keys=512, compute=256, last_compute=128)
"""Two blocks of queries, three of keys with two tiles each, the last one of 88 keys."""

QUERIES, KEYS, REAL = 200, 1416, 1368


def tiles_of(rows, queries=128, keys=256):
    return ActiveTiles(queries=queries, keys=keys, active=np.array(rows, bool))


def masked(query, key, value, tiles):
    """Float64, over the attended keys alone."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[3] ** 0.5
    scores = np.where(tiles.mask(query.shape[1], key.shape[1]), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhqk,bkhd->bqhd", weights, value)


def run(arrays, tiles, num_keys, **blocks):
    """Interpreted under jit, with `BLOCKS` unless said otherwise."""
    function = functools.partial(
        flash_sparse_attention,
        tiles=tiles,
        num_keys=num_keys,
        interpret=True,
        **({"blocks": BLOCKS} | blocks),
    )
    query, key, value = arrays
    return np.asarray(jax.jit(function)(query, key, value))


@pytest.mark.parametrize("subtracts", [False, True])
def test_all_tiles_are_the_dense_kernel(subtracts, make_qkv, spoil):
    """Bit for bit; the padding holds NaN. Red when the list is not what the counter counts."""
    query, key, value = make_qkv(2, QUERIES, KEYS, 2, 16)
    arrays = spoil((query, key, value), REAL, np.nan)
    blocks = Blocks(
        queries=128, keys=512, compute=256, last_compute=128,
        order=Order(unit=128, behind=2, subtracts=subtracts),
    )  # fmt: skip
    dense = jax.jit(
        lambda *x: flash_attention(
            *(a.reshape(1, *a.shape[:2], -1) for a in x),
            head_dim=16, num_keys=REAL, interpret=True, blocks=blocks,
        ).reshape(query.shape)
    )(*arrays)  # fmt: skip
    np.testing.assert_array_equal(
        run(arrays, tiles_of(np.ones((2, 6))), REAL, blocks=blocks), dense
    )


ROWS = [
    [[1, 0, 0, 1, 1, 1], [0, 1, 1, 0, 1, 0]],  # of each block of keys; with the end and without
    [[0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1]],  # nothing of the first; the end alone
]


@pytest.mark.parametrize("rows", ROWS, ids=["some", "late"])
def test_some_tiles_are_the_masked_reference(rows, make_qkv, spoil):
    """Red when a list is another block's, or when the end of the keys is attended without being
    asked for."""
    query, key, value = make_qkv(2, QUERIES, KEYS, 2, 16)
    arrays, tiles = spoil((query, key, value), REAL, np.nan), tiles_of(rows)
    expected = masked(query, key[:, :REAL], value[:, :REAL], tiles)
    assert relative_error(run(arrays, tiles, REAL), expected) < PARITY


def test_keys_far_above_that_are_not_attended(make_qkv):
    """Their scores are thousands above: red (not a number, or 0) when the first reference or a
    second attempt's maximum is taken of them, or when a block that is not attended starts the
    queries. 1e-3: scores of some hundreds to 7 digits."""
    query, key, value = make_qkv(1, QUERIES, KEYS, 1, 16)
    query = np.abs(query).astype(np.float32)
    key[:, :256] += 2000  # attended by neither block of queries
    key[:, 768:1024] += 2000  # nor these
    key[:, 600:700] += 80  # a jump in the block that both attend some of
    tiles = tiles_of([[0, 1, 1, 0, 1, 1], [0, 0, 1, 0, 0, 0]])
    out = run((query, key, value), tiles, KEYS)
    assert relative_error(out, masked(query, key, value, tiles)) < 1e-3


def test_the_chip_s_blocks(make_qkv):
    """Tiles of 1,024 keys, one block of them and a short end."""
    query, key, value = make_qkv(1, 130, 2100, 1, 16)
    tiles = tiles_of([[0, 1, 1], [1, 0, 0]], keys=1024)
    out = run((query, key, value), tiles, 2100, blocks=None)
    assert relative_error(out, masked(query, key, value, tiles)) < PARITY


@pytest.mark.parametrize(
    ("tiles", "keys", "message"),
    [
        (
            tiles_of(np.ones((2, 4)), keys=1024),
            2100,
            r"\[2, 4\] do not fit 200 .* expected \[2, 3\]",
        ),
        (tiles_of(np.ones((2, 3)), keys=512), 2100, "tiles of 512 keys for 2100 keys"),
        (tiles_of(np.ones((2, 1)), keys=1024), 300, "tiles of 1024 keys for 300 keys"),
        (tiles_of(np.ones((2, 3)), queries=100, keys=1024), 2100, "blocks of 100 queries"),
    ],
)
def test_tiles_that_do_not_fit(tiles, keys, message, make_qkv):
    arrays = map(jnp.asarray, make_qkv(1, 200, keys, 1, 16))
    with pytest.raises(InputError, match=message):
        flash_sparse_attention(*arrays, tiles=tiles, num_keys=keys, interpret=True)


def test_numbers_of_the_steps():
    """Begins, whole tiles, the end, which tiles: of two blocks of queries, three of keys."""
    assert step_numbers(tiles_of(ROWS[1]), BLOCKS, KEYS, REAL).tolist() == [
        [[0, 0, 0, 0, 0], [1, 1, 0, 1, 0], [0, 0, 0, 0, 0]],
        [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 1, 0, 0]],
    ]
