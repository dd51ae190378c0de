"""Micro-batches of bounded size, of texts of similar or of equal length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

TOKEN_BUDGET = 2048
"""Tokens (padding included) of one micro-batch; bounds memory, and keeps it in cache."""

BATCH_OVERHEAD = 96
"""What one more micro-batch costs, in tokens that take as long: a forward and backward pass of a
layer of the embedded backbone takes about 4 ms beside 0.04 ms a token on two CPU cores."""


def cuts(lengths: np.ndarray, sizes: np.ndarray, token_budget: int) -> list[tuple[int, int]]:
    """Cut a sorted list into batches so that padded tokens and batches together cost least.

    Dynamic programming from the end: the best way to cut what begins at i is a batch [i, j) that
    fits the budget and the best way to cut the rest.

    Args:
        lengths: tokens of every item's longest row, shape (n,), falling.
        sizes: rows of every item, shape (n,).
        token_budget: largest rows × length of a batch; a larger item has a batch of its own.

    Returns:
        (first, end) of every batch, in order.
    """
    before = np.concatenate([[0], np.cumsum(sizes)])
    cost = np.zeros(len(lengths) + 1)
    end = np.zeros(len(lengths), dtype=np.int64)
    for i in range(len(lengths) - 1, -1, -1):
        rows = before[i] + token_budget // max(1, int(lengths[i]))
        last = max(i + 1, int(np.searchsorted(before, rows, side="right")) - 1)
        through = (before[i + 1 : last + 1] - before[i]) * lengths[i] + cost[i + 1 : last + 1]
        best = int(np.argmin(through))
        cost[i], end[i] = through[best] + BATCH_OVERHEAD, i + 1 + best
    found, first = [], 0
    while first < len(lengths):
        found.append((first, int(end[first])))
        first = found[-1][1]
    return found


def micro_batches(
    rows: np.ndarray, lengths: np.ndarray, token_budget: int = TOKEN_BUDGET
) -> Iterator[np.ndarray]:
    """Divide ``rows`` into batches of similar length within a token budget.

    Every row comes exactly once. A row longer than the budget has a batch of its own.

    Args:
        rows: indices into ``lengths``, shape (n,).
        lengths: tokens of every record, shape (N,).
        token_budget: largest number of rows × longest length of a batch.

    Yields:
        Arrays of rows, longest texts first (so that memory peaks at once, not late).
    """
    order = rows[np.argsort(-lengths[rows], kind="stable")]
    start = 0
    while start < len(order):
        size = max(1, token_budget // int(lengths[order[start]]))
        yield order[start : start + size]
        start += size


def equal_batches(
    rows: np.ndarray, lengths: np.ndarray, token_budget: int = TOKEN_BUDGET
) -> Iterator[np.ndarray]:
    """As :func:`micro_batches`, of records of one length each: nothing is padded.

    What a frozen model makes of a record then does not depend on what it is computed with, to the
    last bit: padding changes in which order matrix kernels add, other rows of a product with four
    or more do not. So one cache serves any division of the records among sites, a trainer that
    restarted goes on as it was, and no record's sums round as another one has them.
    """
    order = rows[np.argsort(-lengths[rows], kind="stable")]
    for run in runs(lengths[order]):
        yield from micro_batches(order[run], lengths, token_budget)


def runs(values: np.ndarray) -> list[np.ndarray]:
    """Positions of every stretch of equal ``values`` (n,), in order."""
    return np.split(np.arange(len(values)), np.flatnonzero(np.diff(values)) + 1)
