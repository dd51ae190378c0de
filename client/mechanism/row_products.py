"""Outputs of a linear head in float64, of which a row's depend on that row alone, to the bit.

A matrix kernel takes other paths for rows that begin elsewhere in a line of memory: of a product
of 385 columns of float64, MKL rounds odd rows otherwise than even ones. A last bit is enough: a
head that was made to cancel against a known record turns it into another class, so that one record
taken away, which moves the others by one row, would move the sum by many times its bound.

Formal guarantee:
    :class:`RowProducts` gives for a row what it gives for that row in any other place, among any
    others. Rows are computed in blocks of one shape (``BLOCK`` rows), every row of which, as every
    row of the weights and of what comes out, begins at a multiple of ``LINE`` bytes: columns and
    outputs are filled up with zeros, which change no sum. Whether a row's bits then follow from
    the row alone is tried out for every shape and number of threads of a process: made-up rows in
    every place of a block, between others, must come out equal in all bits. Where they do not,
    every row is computed by itself, from a copy of its own. As of
    :mod:`lorica.common.cache.batching`, the trial rests on kernels not looking at values.
"""

from __future__ import annotations

import functools
import logging

import numpy as np
import torch

from lorica.client.mechanism.clipping import BLOCK, LINE
from lorica.client.mechanism.exactness import NEIGHBOURS, differs

_COUNT = LINE // 8  # float64 in a line
_DRAWS = 8  # of made-up rows and weights

_log = logging.getLogger("lorica.site")


class RowProducts:
    """Blocks of rows times one matrix, every row by itself to the bit."""

    def __init__(self, weights: torch.Tensor) -> None:
        """``weights``: float64, shape (C, K)."""
        self._outputs = len(weights)
        self._weights = _widened(weights, _whole(len(weights)))

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """``rows`` @ weightsᵀ.

        Args:
            rows: float64, shape (BLOCK, K).

        Returns:
            float64, shape (BLOCK, C).

        Raises:
            ValueError: another number of rows.
        """
        if len(rows) != BLOCK:
            raise ValueError(f"{BLOCK} rows are computed together, not {len(rows)}.")
        given, by = _widened(rows, BLOCK), self._weights
        if _is_exact(given.shape[1], len(by), torch.get_num_threads()):
            found = given @ by.T
        else:
            found = torch.stack([by @ row.clone() for row in given])
        return found[:, : self._outputs].contiguous()


def _whole(count: int) -> int:
    """The next whole number of lines, in float64."""
    return -(-count // _COUNT) * _COUNT


def _widened(values: torch.Tensor, count: int) -> torch.Tensor:
    """The matrix in the corner of one of zeros, of so many rows and of columns in whole lines."""
    found = torch.zeros(count, _whole(values.shape[1]), dtype=torch.float64)
    found[: len(values), : values.shape[1]] = values
    return found


@functools.cache
def _is_exact(columns: int, outputs: int, threads: int) -> bool:
    """Whether, with so many threads, a made-up row's outputs are the same in every place."""
    generator = torch.Generator().manual_seed(columns)
    for _ in range(_DRAWS):
        made, weights = (
            torch.randn(rows, columns, dtype=torch.float64, generator=generator)
            for rows in (1 + NEIGHBOURS, outputs)
        )

        def computed(
            rows: np.ndarray, made: torch.Tensor = made, weights: torch.Tensor = weights
        ) -> dict[str, torch.Tensor]:
            return {"outputs": made[torch.from_numpy(rows)] @ weights.T}

        if differs(computed, [BLOCK]):
            _log.warning(
                "on this machine the head's outputs are computed row by row: %d columns, %d "
                "outputs and %d threads do not give a row the same bits in every place",
                columns,
                outputs,
                threads,
            )
            return False
    return True
