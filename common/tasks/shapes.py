"""The shape that a record is computed in: decided by the record alone.

Kernels add in an order that follows from the shapes that they are given. So what is computed of a
record can depend on that record alone only if the shape does: texts are padded not to the longest
of their batch but to the next *canonical length*, and only records of one shape share a batch
(:mod:`lorica.common.cache.batching`). Whether a text fills its shape is part of it: models leave
out the mask where nothing is masked, and so take other kernels.

A record has one or more *sizes*: a text its tokens, a text of a language task also the places that
it is asked at, an image its patches.
"""

from __future__ import annotations

import sys

import numpy as np

UNLIMITED = sys.maxsize
"""The longest text of a model without a limit."""

_STEPS = ((64, 8), (128, 16), (256, 32), (512, 64), (UNLIMITED, 128))


def padded(size: np.ndarray | int, limit: int = UNLIMITED) -> np.ndarray:
    """The canonical length for a size: the next multiple of 8 up to 64, of 16 up to 128, of 32 up
    to 256, of 64 up to 512, of 128 above; at most ``limit``.

    Args:
        size: tokens, any shape, at least 1 and at most ``limit``.
        limit: of the model and plan: public.
    """
    given = np.maximum(np.asarray(size, dtype=np.int64), 1)
    found = np.zeros_like(given)
    least = 0
    for most, step in _STEPS:
        inside = (given > least) & (given <= most)
        found[inside] = -(-given[inside] // step) * step
        least = most
    return np.minimum(found, limit)


def canonical_lengths(limit: int) -> list[int]:
    """All canonical lengths up to a limit, rising."""
    return sorted({int(padded(size, limit)) for size in range(1, limit + 1)})


def shapes_of(sizes: np.ndarray, starts: np.ndarray, limit: int) -> np.ndarray:
    """The shape of every unit: its records share the largest of theirs.

    Args:
        sizes: of the units' records, one unit after the other, shape (n, d).
        starts: the first record of every unit, shape (units,), from 0.
        limit: largest canonical length.

    Returns:
        int64, shape (units, d + 1): canonical lengths, and whether all records fill the first.
    """
    if not len(starts):
        return np.zeros((0, sizes.shape[1] + 1), dtype=np.int64)
    lengths = padded(np.maximum.reduceat(sizes, starts, axis=0), limit)
    full = np.minimum.reduceat(sizes[:, 0], starts) == lengths[:, 0]
    return np.concatenate([lengths, full[:, None].astype(np.int64)], axis=1)
