"""Clip vectors and add them up without rounding: the sum is exact, whatever its order.

Formal guarantee:
    *Neighbouring relation*: one vector more or less. *Sensitivity*: with C' the power of two at or
    below the bound C, every vector is scaled to norm at most C·(1 - 2^-22) and each of its
    coordinates cut towards 0 to a multiple of C'·2^-30. Cutting shrinks; the factor is made in
    float64 from a norm in float64, whose error is below a relative 10^-10; turning it to float32
    and multiplying round by a relative 2^-23 at most. So the vector that is added has norm below
    C. A coordinate is less than 2^31 steps, so float64 adds up to 2^22 vectors exactly, and the sum
    differs between neighbours by that one vector: the sensitivity is C, of the numbers as they are
    in memory. Each vector is a function of the one that was given; nothing of it depends on
    another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

GRID_BITS = 30
"""Clipped coordinates are multiples of 2^-30 of the power of two at or below the bound."""

MARGIN = 1 - 2.0**-22
"""Of the bound: what is clipped is clipped to this much of it, for what float32 rounds up."""

_TINY = 1e-12  # keeps C / 0 finite


BLOCK = 64
"""Rows that are computed together where they are no model's batch."""

LINE = 64
"""Bytes in a line of memory, at whose multiples torch's own tensors begin; kernels look at that."""


def blocks(values: torch.Tensor) -> Iterator[tuple[torch.Tensor, int]]:
    """Rows (n, …) in blocks of one shape (``BLOCK``, …), the last filled up with 0, and how many
    of a block's rows are given ones: so nothing of a row depends on how many there are. Whole
    blocks are not copied where they lie in memory as a copy would; they are to be read only."""
    dense = values.is_contiguous()
    for start in range(0, len(values), BLOCK):
        part = values[start : start + BLOCK]
        if dense and len(part) == BLOCK and part.data_ptr() % LINE == 0:
            yield part, BLOCK
            continue
        whole = values.new_zeros(BLOCK, *values.shape[1:])
        whole[: len(part)] = part
        yield whole, len(part)


def grid_of(bound: float) -> float:
    """The grid of clipped coordinates, in their unit: a power of two."""
    return math.ldexp(1.0, math.frexp(bound)[1] - 1 - GRID_BITS)


def row_norms(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """L2 norm of every row of matrices (n, …) side by side, in float64; NaN or infinity exactly
    where a row holds one: float32 values cannot overflow it."""
    return torch.stack(
        [torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in parts]
    ).norm(dim=0)


def factors_of(
    norms: torch.Tensor, bound: float, *, exact: bool = True, margin: float = MARGIN
) -> torch.Tensor:
    """What vectors of these norms are multiplied by, float64: 1, or less where they are longer than
    ``bound`` · ``margin``, or just ``bound`` where nothing need be ``exact``; 0 where they hold
    what is no finite number."""
    most = bound * margin if exact else bound
    return torch.where(norms.isfinite(), (most / (norms + _TINY)).clamp(max=1.0), 0.0)


def scaled_sum(
    vectors: torch.Tensor, factors: torch.Tensor, bound: float, *, exact: bool = True
) -> torch.Tensor:
    """Σ factors_i · vectors_i, float64.

    Args:
        vectors: (n, P), float32 or float64; finite where the factor is not 0.
        factors: (n,), float64, as of :func:`factors_of`, or 0.
        bound: C.
        exact: on the grid, as the module's guarantee says; otherwise as near to the true sum as
            float64 is, which is for sums without noise.
    """
    kept = vectors.nan_to_num(0.0, 0.0, 0.0) if not bool(factors.all()) else vectors
    if not exact:
        return factors @ kept.double()
    grid = grid_of(bound)
    steps = (kept * (factors / grid).to(kept.dtype)[:, None]).trunc_()
    return steps.sum(0, dtype=torch.float64) * grid


def on_grid(vectors: torch.Tensor, bound: float) -> torch.Tensor:
    """Vectors (n, P), float64, cut towards 0 to the grid of ``bound``."""
    grid = grid_of(bound)
    return (vectors / grid).trunc_() * grid
