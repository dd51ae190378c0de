"""How alike sites are, by the noised class sums that a run begins with.

With u_i = s_i + z_i the release of site i, s_i the exact sums of its records' features by label and
z_i independent noise of deviation τ in d coordinates, E[u_i · u_j] = s_i · s_j for i ≠ j and
E[‖u_i‖²] = ‖s_i‖² + d τ². So (u_i · u_j) / √((‖u_i‖² - d τ²)(‖u_j‖² - d τ²)) estimates the cosine
of the exact sums: 1 where two sites have the same mix of labels and their labels look the same,
less where either differs. Its standard error is about τ √(‖s_i‖² + ‖s_j‖² + d τ²) / (‖s_i‖ ‖s_j‖).

Post-processing of what sites released: no ε.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

MOST = 64
"""Sites: a map of more tells nobody anything."""


@dataclass(frozen=True)
class Alike:
    """Cosines of every two sites' sums."""

    cosines: list[list[float | None]]
    """Shape (K, K), symmetric, 1 on the diagonal; None where a site's sums are no longer than their
    noise."""
    error: float | None
    """Largest standard error of a cosine from noise, of those that are told; None without any."""


def alike(kept: torch.Tensor, values: int, deviation: float) -> Alike:
    """Cosines of the exact sums, from what is kept of noised ones.

    Args:
        kept: releases, or sketches that keep their inner products, shape (K, k).
        values: coordinates d of a release.
        deviation: τ of the noise in each of them.
    """
    given = kept.double()
    products = (given @ given.T).tolist()
    noise = values * deviation**2
    squares = [products[site][site] - noise for site in range(len(products))]
    # A norm² is off by the noise of its own: about twice its standard deviation is asked for.
    told = [square > 2 * deviation * math.sqrt(2 * values) * deviation for square in squares]
    cosines: list[list[float | None]] = []
    error: float | None = None
    for one, row in enumerate(products):
        found: list[float | None] = []
        for other, product in enumerate(row):
            if one == other:
                found.append(1.0)
                continue
            if not (told[one] and told[other]):
                found.append(None)
                continue
            length = math.sqrt(squares[one] * squares[other])
            spread = math.sqrt(squares[one] + squares[other] + noise)
            error = max(error or 0.0, deviation * spread / length)
            found.append(min(1.0, max(-1.0, product / length)))
        cosines.append(found)
    return Alike(cosines, error)
