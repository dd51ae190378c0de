"""What a site releases while the encoder is frozen: label sums and the head's gradient sum.

A linear head's gradient for one record is an outer product, so norms, clipping and the sum need
no gradient per record to be written out: with residuals r_i, the derivative of the record's loss
by its outputs W f_i + b (for cross-entropy softmax(W f_i + b) - onehot(y_i)), and f_i extended by a
constant for the bias (``BIAS_INPUT``), the record's gradient is r_i (x) f_i, and for a unit u with
records i = 1..m the mean g_u = (1/m) Σ r_i (x) f_i has ‖g_u‖² = (1/m²) Σ_ij (r_i·r_j)(f_i·f_j).

Formal guarantee:
    *Neighbouring relation*: one unit (:mod:`lorica.client.mechanism.units`) added or removed.
    *Mechanism*: every unit is drawn independently with probability q; a drawn unit adds one
    vector of L2 norm at most Δ; their sum plus N(0, σ²Δ² I) is released: the Poisson-subsampled
    Gaussian mechanism with noise multiplier σ. *Label sums*: the vector is the mean over the
    unit's records of onehot(y) (x) f with ‖f‖ = 1, cut to norm Δ = 1. *Head gradient*: the
    vector is g_u · min(1, C / ‖g_u‖), Δ = C. A unit with any value that is not finite adds 0.

    *Numbers*: features come from canonical batches (:mod:`lorica.common.cache.batching`); outputs
    are of :mod:`lorica.client.mechanism.row_products`, residuals, norms and factors are computed
    in float64 in blocks of one shape (:func:`~lorica.client.mechanism.clipping.blocks`), the norm
    of a unit of several records by itself. So a unit's vector depends on that unit alone, to the
    bit, whatever head was sent. The sum is made in float64 and rounds, otherwise with other units;
    by how much is bounded: with n records of m units, in parts of
    ``_PART`` records, the L2 error is at most γ·Σ_u (1/m_u) Σ_i ‖r_i‖‖f_i‖·factor_u, where
    γ = 1.01·2^-53·(``_PART`` + n / ``_PART`` + 2) (Higham, "Accuracy and Stability of Numerical
    Algorithms", 2nd ed., 3.1 and 4.2, for any order of adding), and that is at most γ·m·Δ for
    units of one record, and γ·m·64·Δ for others, whose factor allows for what their records'
    gradients cancel (``_CANCEL``). Vectors are cut to Δ·(1 - 2^-14), and twice the error is below
    2^-14·Δ up to n = 900,000: the sensitivity of the sum as it is in memory is at most Δ.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorica.client.mechanism.clipping import BLOCK, blocks, factors_of, row_norms
from lorica.client.mechanism.noise import NoiseSource
from lorica.client.mechanism.row_products import RowProducts
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.tasks.text_classification import BIAS_INPUT

Residuals = Callable[[torch.Tensor, np.ndarray], torch.Tensor]
"""Outputs (n, C) of the drawn records at these places (n,) -> the derivative of their loss by them,
(n, C)."""

_MARGIN = 1 - 2.0**-14  # of Δ; more than twice what the sum's rounding moves it by
_PART = 4096  # records whose products are summed at once
_CANCEL = 2.0**-6  # a unit's vector counts as no shorter than this much of its records' together
_CANCELLED = 1e-12  # more than float64 loses of (Σ‖r_i‖‖f_i‖)² in a sum that cancels
_SUMS_NORM = 1.0


@dataclass(frozen=True)
class Contributions:
    """What drawn units' records give before clipping: record i the matrix left_i (x) right_i."""

    left: torch.Tensor
    """float64, shape (n, C)."""
    right: torch.Tensor
    """float64, shape (n, K)."""
    bound: float
    """Δ: L2 norm that a unit's mean is cut to."""


def label_contributions(features: torch.Tensor, labels: torch.Tensor, count: int) -> Contributions:
    """What records give to the sums of the features of every label, which have shape (C, H).

    Args:
        features: of the drawn units' records, unit norm, shape (n, H).
        labels: theirs, shape (n,), int64.
        count: number of labels C.
    """
    one_hot = torch.nn.functional.one_hot(labels, count).double()
    return Contributions(one_hot, features.double(), _SUMS_NORM)


def head_contributions(
    head: torch.nn.Linear, features: torch.Tensor, residuals: Residuals, clip_norm: float
) -> Contributions:
    """Gradients of the loss with respect to a linear head, which have shape (C, H + 1).

    Args:
        head: W (C, H) and b (C,).
        features: of the drawn units' records, shape (n, H).
        residuals: the derivative of their loss by their outputs.
        clip_norm: bound C on one unit's gradient.
    """
    with torch.no_grad():
        inputs = torch.empty(len(features), features.shape[1] + 1, dtype=torch.float64)
        inputs[:, :-1] = features
        inputs[:, -1] = float(np.float32(BIAS_INPUT))  # as a feature would have it
        weights = torch.cat([head.weight, head.bias[:, None] / BIAS_INPUT], dim=1).double()
        products = RowProducts(weights)
        left = torch.empty(len(features), len(weights), dtype=torch.float64)
        for start, (block, count) in zip(
            range(0, len(features), BLOCK), blocks(inputs), strict=True
        ):
            places = np.zeros(BLOCK, dtype=np.int64)
            places[:count] = np.arange(start, start + count)
            found = residuals(products(block), places).double()
            left[start : start + count] = found[:count]
    return Contributions(left, inputs, clip_norm)


def noised_sum(
    given: Contributions, owner: torch.Tensor, event: PrivacyEvent, noise: NoiseSource
) -> torch.Tensor:
    """The release: every unit's mean, clipped; their sum, noised.

    Args:
        given: what records give.
        owner: number of every record's unit, from 0 without gaps, shape (n,).
        event: gives σ.
        noise: source of the noise.

    Returns:
        float32, shape (C, K).
    """
    exact = event.noise_multiplier > 0
    total = _clipped_sum(given.left, given.right, owner, given.bound, exact=exact)
    return noise.add_noise(total, event.noise_multiplier * given.bound)


def noised_sums(
    given: Contributions,
    owner: torch.Tensor,
    records: Sequence[int],
    event: PrivacyEvent,
    noises: Sequence[NoiseSource],
) -> list[torch.Tensor]:
    """The releases of several sites: of each, to the bit, what :func:`noised_sum` gives of its
    records alone.

    Norms and factors are of rows in blocks of one shape, whoever's they are; a site's sum is of
    its own rows, in matrices of its own.

    Args:
        given: what all sites' records give, site after site.
        owner: number of every record's unit, from 0 without gaps, shape (n,); no unit is of two
            sites.
        records: how many of the records every site has.
        event: gives σ, the same for all.
        noises: every site's source of noise.

    Returns:
        float32, shape (C, K), one for every site.
    """
    exact = event.noise_multiplier > 0
    scaled, right = _scaled(given.left, given.right, owner, given.bound, exact=exact)
    found, start = [], 0
    for count, noise in zip(records, noises, strict=True):
        # Copies, so that they lie in memory as a site's own would: kernels look at that.
        own = slice(start, start + count)
        total = _product(scaled[own].clone(), right[own].clone())
        found.append(noise.add_noise(total, event.noise_multiplier * given.bound))
        start += count
    return found


def head_tensors(noised: torch.Tensor) -> dict[str, torch.Tensor]:
    """A released gradient sum (C, H + 1) as "head.weight" (C, H) and "head.bias" (C,), in units of
    the loss per weight; the bias is that of the constant input, b / ``BIAS_INPUT``."""
    return {"head.weight": noised[:, :-1].contiguous(), "head.bias": noised[:, -1].contiguous()}


def _clipped_sum(
    left: torch.Tensor, right: torch.Tensor, owner: torch.Tensor, bound: float, *, exact: bool
) -> torch.Tensor:
    """Σ_u clip(mean over u's records of left_i (x) right_i); left (n, C), right (n, H), float64."""
    return _product(*_scaled(left, right, owner, bound, exact=exact))


def _scaled(
    left: torch.Tensor, right: torch.Tensor, owner: torch.Tensor, bound: float, *, exact: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """left, each row times its unit's factor, and right, without what is no finite number."""
    sizes = torch.bincount(owner)
    sane = torch.ones(len(sizes), dtype=torch.float64)
    if not bool((left.sum() + right.sum()).isfinite()):  # what is not finite makes no finite sum
        finite = (left.isfinite().all(1) & right.isfinite().all(1)).double()
        sane.scatter_reduce_(0, owner, finite, "amin")
        left, right = left.nan_to_num(0.0, 0.0, 0.0), right.nan_to_num(0.0, 0.0, 0.0)
    norms = _norms(left, right, owner, sizes)
    factors = sane * factors_of(norms, bound, exact=exact, margin=_MARGIN) / sizes
    return factors[owner][:, None] * left, right


def _product(scaled: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Σ_i scaled_i (x) right_i, in parts."""
    total = torch.zeros(scaled.shape[1], right.shape[1], dtype=torch.float64)
    for start in range(0, len(scaled), _PART):
        total += scaled[start : start + _PART].T @ right[start : start + _PART]
    return total


def _norms(
    left: torch.Tensor, right: torch.Tensor, owner: torch.Tensor, sizes: torch.Tensor
) -> torch.Tensor:
    """L2 norm of every unit's mean outer product, never below the true one, shape (units,)."""
    own = torch.cat([_own_norms(left), _own_norms(right)], dim=1).prod(1)
    apart = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, owner, own)
    norms = apart.clone()
    order = torch.argsort(owner, stable=True)
    starts = torch.cumsum(sizes, 0) - sizes
    for unit in torch.nonzero(sizes > 1).flatten().tolist():
        # By itself, in matrices of its own: kernels of many at once look at where one lies.
        size = int(sizes[unit])
        rows = order[int(starts[unit]) :][:size]
        a, b = left[rows], right[rows]
        square = ((a @ a.T) * (b @ b.T)).sum().clamp(min=0.0)
        square += _CANCELLED * apart[unit].square()
        norms[unit] = torch.maximum(square.sqrt(), _CANCEL * apart[unit]) / size
    return norms


def _own_norms(values: torch.Tensor) -> torch.Tensor:
    """L2 norm of every row, (n, 1), in blocks of one shape."""
    found = [row_norms([block])[:count] for block, count in blocks(values)]
    return torch.cat([torch.zeros(0, dtype=torch.float64), *found])[:, None]
