"""When jobs end that several slices take in turn."""

import pytest

from server.fleet.forecast import ends


@pytest.mark.parametrize(
    ("left", "totals", "slices", "expected"),
    [
        ([], [3.0, 3.0], 1, [3.0, 6.0]),
        ([], [3.0, 3.0, 3.0], 2, [3.0, 3.0, 6.0]),
        ([2.0, 5.0], [1.0, 1.0], 2, [3.0, 4.0]),
        ([2.0, 5.0], [4.0, 1.0], 2, [6.0, 6.0]),
        ([2.0], [1.0], 3, [1.0]),
        ([None], [1.0], 2, [None]),
        ([], [1.0, None, 1.0], 1, [1.0, None, None]),
        ([], [1.0], 0, [None]),
    ],
)
def test_the_slice_that_is_free_first_takes_the_next(left, totals, slices, expected):
    assert ends(left, totals, slices) == expected
