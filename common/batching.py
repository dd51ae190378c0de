"""Micro-batches of bounded size, of texts of similar length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

TOKEN_BUDGET = 2048
"""Tokens (padding included) of one micro-batch; bounds memory, and keeps it in cache."""


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
