"""Which samples are in which batch: a function of the seed and the batch's number. NumPy alone.

Every batch is of one size of clips. In a cycle of as many batches as there are samples each size
has as many batches as it has samples, mixed at random; the samples of a size come in shuffled
rounds that follow one another without a gap, across batches and cycles. So after a cycle every
sample was used exactly as often as a batch is long, nothing is left out at the end of a round, and
a size with fewer samples than a batch goes round within it.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

_SIZES, _ROUND = 0, 1
"""What numbers are drawn for; part of the seed."""

KEPT = 64
"""Shuffles that are kept: of the cycle and of each size's round, some before and after."""


class Order:
    """The order of batches of a list of samples."""

    def __init__(self, sizes: Sequence[int], *, batch: int, seed: int):
        """Sorts the samples by size.

        Args:
            sizes: a number for the size of each sample; at least one sample.
            batch: samples of a batch.
            seed: of the order.
        """
        self._given = tuple(sizes), batch, seed
        self._size_of = np.asarray(sizes)
        self._batch, self._seed = batch, seed
        self._members = {size: np.flatnonzero(self._size_of == size) for size in set(sizes)}
        self._cycle = functools.lru_cache(KEPT)(self._make_cycle)
        self._round = functools.lru_cache(KEPT)(self._make_round)

    def __reduce__(self) -> tuple[Any, ...]:
        return _make, self._given  # to a worker; the shuffles that are kept stay behind

    def batch(self, number: int) -> list[int]:
        """The samples of a batch, as positions in the list; all of one size."""
        cycle, position = divmod(number, len(self._size_of))
        sizes, ranks = self._cycle(cycle)
        size = int(sizes[position])
        count = len(self._members[size])
        first = (cycle * count + int(ranks[position])) * self._batch  # in the rounds of its size
        places = (divmod(first + offset, count) for offset in range(self._batch))
        return [int(self._round(size, turn)[place]) for turn, place in places]

    def _make_cycle(self, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """The size of each batch of a cycle, and how many of that size are before it."""
        sizes = self._size_of[self._numbers(_SIZES, cycle).permutation(len(self._size_of))]
        ranks = np.empty_like(sizes)
        for size, members in self._members.items():
            ranks[sizes == size] = np.arange(len(members))
        return sizes, ranks

    def _make_round(self, size: int, turn: int) -> np.ndarray:
        """The samples of a size in the order of a round."""
        return self._numbers(_ROUND, size, turn).permutation(self._members[size])

    def _numbers(self, *purpose: int) -> np.random.Generator:
        # Philox by its key, of whatever numbers: the same on every machine.
        sequence = np.random.SeedSequence([self._seed % 2**64, *purpose])  # it takes none below 0
        return np.random.Generator(np.random.Philox(sequence))


def _make(sizes: Sequence[int], batch: int, seed: int) -> Order:
    return Order(sizes, batch=batch, seed=seed)
