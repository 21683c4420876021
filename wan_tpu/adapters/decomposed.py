"""DoRA (arXiv 2402.09353): a weight with its difference, scaled to norms that were learned.

The norms are those of whole rows, or columns, of the base and its difference together, of which a
device reads a part. So they are taken from the whole weight, once in a process, whichever part is
asked for first: every layout has the same, and each weight is read twice.
"""

import threading
from collections.abc import Callable

import numpy as np
import torch

from wan_tpu.adapters.products import Product, tiles

ReadRows = Callable[[slice], np.ndarray]
"""Whole rows of the base's weight, in its dtype."""


class Decomposed:
    """The difference `magnitude / norm(W + D) * (W + D) - W` of a weight, times a strength.

    W is the base's, without other adapters; D at strength 1, since the norms belong to all of it.
    """

    def __init__(
        self, product: Product, magnitude: np.ndarray, strength: float, read_rows: ReadRows
    ):
        """Reads nothing.

        Args:
            product: D.
            magnitude: see `Adapter.magnitudes`.
            strength: what the difference is multiplied with.
            read_rows: of the base.
        """
        self._product = product
        self._of_rows = magnitude.shape[0] == product.shape[0]
        self._magnitude = magnitude.astype(np.float64).reshape(-1)
        self._strength = np.float32(strength)
        self._read_rows = read_rows
        self._lock = threading.Lock()
        self._factors: np.ndarray | None = None

    def add_to(self, out: np.ndarray, base: np.ndarray, rows: range, columns: range) -> None:
        """Adds the part `rows`, `columns` to `out`; `base` is that part of the base, float32."""
        with self._lock:
            if self._factors is None:
                self._factors = self._read_factors()
        weight = base.copy()
        self._product.add_to(torch.from_numpy(weight), rows, columns)
        if self._of_rows:
            weight *= self._factors[rows.start : rows.stop, None]
        else:
            weight *= self._factors[columns.start : columns.stop]
        weight -= base
        weight *= self._strength
        out += weight

    def _read_factors(self) -> np.ndarray:
        """The magnitudes over the norms, float32; 0 where a norm is, since 0 stays 0."""
        rows, columns = self._product.shape
        squares = np.zeros(rows if self._of_rows else columns)
        for upper in tiles(range(rows), rows):
            here = slice(upper.start, upper.stop)
            weight = self._read_rows(here).astype(np.float32)
            self._product.add_to(torch.from_numpy(weight), upper, range(columns))
            squared = np.square(weight, dtype=np.float64)
            if self._of_rows:
                squares[here] = squared.sum(axis=1)
            else:
                squares += squared.sum(axis=0)
        norms = np.sqrt(squares)
        factors = np.divide(self._magnitude, norms, out=np.zeros_like(norms), where=norms > 0)
        return factors.astype(np.float32)
