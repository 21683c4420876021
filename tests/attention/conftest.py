"""Random queries, keys and values for every attention test, and what the answer should be.

All NumPy: eager JAX would compile each little operation for each shape.
"""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def make_qkv():
    """Standard normal query [batch, queries, heads, head_dim], and key and value alike."""

    def make(batch, queries, keys, heads, head_dim, *, dtype=np.float32, seed=0):
        random = np.random.default_rng(seed)
        shapes = [(batch, length, heads, head_dim) for length in (queries, keys, keys)]
        return tuple(random.standard_normal(shape, np.float32).astype(dtype) for shape in shapes)

    return make


@pytest.fixture(scope="session")
def spoil():
    """Puts something into every position from `start` on, of queries, keys and values alike."""

    def spoiled(arrays, start, what):
        arrays = tuple(x.copy() for x in arrays)
        for x in arrays:
            x[:, start:] = what
        return arrays

    return spoiled


@pytest.fixture(scope="session")
def exact():
    """Attention in float64 NumPy, head by head: what the reference itself is held to."""

    def attention(query, key, value):
        query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
        out = np.zeros_like(query)
        for batch, head in np.ndindex(query.shape[0], query.shape[2]):
            one = (batch, slice(None), head)
            scores = query[one] @ key[one].T / np.sqrt(query.shape[-1])
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[one] = weights @ value[one] / weights.sum(axis=1, keepdims=True)
        return out

    return attention
