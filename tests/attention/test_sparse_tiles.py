"""Sliding tiles against their definition, token by token."""

import numpy as np
import pytest

from wan_tpu.attention.sparse_tiles import ActiveTiles, cube_order, sliding_tiles
from wan_tpu.errors import InputError


def attended(grid, cube, window):
    """[tokens, tokens] in the order of frames, rows and columns."""
    places = np.indices(grid).reshape(3, -1).T // cube
    counts = -(-np.array(grid) // cube)
    size = np.minimum(window, counts)
    first = np.clip(places - size // 2, 0, counts - size)
    inside = (places[None] >= first[:, None]) & (places[None] < (first + size)[:, None])
    return inside.all(-1)


@pytest.mark.parametrize(
    ("grid", "cube", "window"),
    [
        ((4, 6, 8), (2, 3, 4), (1, 2, 1)),
        ((5, 4, 7), (2, 3, 2), (3, 1, 3)),
        ((1, 4, 4), (1, 4, 4), (9, 9, 9)),
    ],
)
def test_tiles_with_a_pair_that_is_attended(grid, cube, window):
    """Red when cubes are taken in another order, or the window leaves the video at an edge."""
    order = cube_order(grid, cube)
    assert sorted(order) == list(range(np.prod(grid)))
    pairs = attended(grid, cube, window)[order][:, order]
    tiles = sliding_tiles(grid, cube=cube, window=window, queries=8, keys=16)
    for block, row in enumerate(tiles.active):
        for tile, active in enumerate(row):
            part = pairs[block * 8 : block * 8 + 8, tile * 16 : tile * 16 + 16]
            assert active == part.any(), (block, tile)
    assert (tiles.mask(*pairs.shape) | ~pairs).all()


def test_share_of_a_video():
    """720p, 81 frames: of 32 % of pairs in the window, 45 % are computed."""
    tiles = sliding_tiles((21, 45, 80), cube=(3, 15, 20), window=(3, 3, 3), queries=2560)
    assert tiles.active.shape == (30, 74)
    assert tiles.share == pytest.approx(0.453, abs=1e-3)


def test_wrong_tiles_say_what_works():
    with pytest.raises(InputError, match=r"at least 1, got grid \(1, 1, 1\).* window 3,3,3"):
        sliding_tiles((1, 1, 1), cube=(1, 1, 1), window=(0, 1, 1), queries=128)
    with pytest.raises(InputError, match="block 1 of 2 blocks of queries attends no tile"):
        ActiveTiles(queries=128, keys=1024, active=np.array([[True], [False]]))
