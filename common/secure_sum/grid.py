"""Real sums on an integer grid: how fine, how much noise a site adds, and why nothing overflows.

Formal statement:
    Let f be a site's sum of units' vectors, each of L2 norm at most Δ, d values in all. The site
    takes every value of f into the box [-U·Δ, U·Δ] with U = :data:`MOST_UNITS`, divides by the
    step γ (a power of two) and rounds to the nearest integer.

    *Sensitivity.* The box is convex, so projecting on it moves no two sums apart; rounding moves
    each coordinate's difference by at most 1; float64 sums err by less than a relative 2^-20 of Δ
    (:data:`_SUMMED`). So a unit added or removed moves the integers by at most
    S = (1 + 2^-20)·Δ/γ + √d in L2 norm. γ is at most 2^-20·Δ and 2^-10·Δ/√d, where σ allows it, so
    S is at most a relative 0.1 % above Δ/γ.

    *Noise.* Each site adds N_Z(0, v) to every integer with v = ⌈σ²S²/h⌉, so that h sites' noise has
    variance at least (σ·S)²: noise multiplier σ.

    *Headroom.* A site's integers are at most U·Δ/γ + 1 before the noise; of all values of n sites
    in a round some noise exceeds 15·√v with probability at most n·d·2·exp(-112.5) < n·d·10^-48
    (N_Z is subgaussian with its own variance: Canonne, Kairouz and Steinke 2020, corollary 17).
    2^bits is more than twice n times the sum of both, so the sum of n sites modulo 2^bits has one
    centred representative, the sum itself. Privacy does not rest on it: reduction is
    post-processing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lorica.common.errors import Code, LoricaError
from lorica.common.secure_sum.discrete_gaussian import MOST_VARIANCE

MOST_UNITS = 2**20
"""U: a value of a site's sum is cut to what so many units can give."""

_SUMMED = 2.0**-20
_FINEST = 2.0**-20  # of Δ
_ROUNDING = 2.0**-10  # of Δ: what √d roundings may add up to
_TAIL = 15.0  # standard deviations
_MOST_BITS = 64


@dataclass(frozen=True)
class Grid:
    """The integers of one sum."""

    values: int
    """d."""
    bound: float
    """Δ: largest L2 norm of one unit's part, in units of the sum."""
    sigma: float
    """σ: noise multiplier that ``honest`` sites together have."""
    honest: int
    """h."""
    sites: int
    """n."""
    step: float
    """γ: what 1 stands for, a power of two."""
    sensitivity: float
    """S: what one unit moves the integers by, L2."""
    variance: int
    """v: of one site's noise, in steps²."""
    bits: int
    """Of the modulus 2^bits, a multiple of 8."""

    def integers(self, total: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """A site's sum, or some of its values in a row, on the grid; not private.

        Raises:
            ValueError: more values than there are, or one that is not finite.
        """
        if total.ndim != 1 or len(total) > self.values or not np.isfinite(total).all():
            raise ValueError("The sum to be sealed has more values, or one that is not finite.")
        most = MOST_UNITS * self.bound
        return np.rint(np.clip(total, -most, most) / self.step).astype(np.int64)

    def reals(self, summed: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """A sum's integers back in its own units, shape (d,)."""
        return summed.astype(np.float64) * self.step


def grid(values: int, bound: float, sigma: float, *, honest: int, sites: int) -> Grid:
    """The grid for a sum of ``values`` values over ``sites`` sites.

    Args:
        values: d, at least 1.
        bound: Δ, above 0.
        sigma: σ, at least 0; 0 is not private.
        honest: h.
        sites: n, at least h.

    Raises:
        LoricaError: LOR-406 there is no grid for such figures.
    """
    if not (
        values >= 1 and 0 < bound < math.inf and 0 <= sigma < math.inf and 1 <= honest <= sites
    ):
        raise ValueError(f"no such sum: {values=}, {bound=}, {sigma=}, {honest=}, {sites=}")
    finest = bound * min(_FINEST, _ROUNDING / math.sqrt(values))
    coarse = 1.01 * sigma * bound / math.sqrt(honest * MOST_VARIANCE)
    step = math.ldexp(1.0, math.frexp(finest)[1] - 1)
    while step < coarse:
        step *= 2
    sensitivity, variance = _at(step, values, bound, sigma, honest)
    while variance > MOST_VARIANCE and step < bound:
        step *= 2
        sensitivity, variance = _at(step, values, bound, sigma, honest)
    each = MOST_UNITS * bound / step + 1 + _TAIL * math.sqrt(variance)
    bits = 8 * math.ceil((1 + math.log2(sites * each) + 2.0**-30) / 8)
    if bits > _MOST_BITS or variance > MOST_VARIANCE:
        raise LoricaError(
            Code.PRIVACY_CALIBRATION,
            f"A sum of {values:,} values over {sites:,} sites at noise multiplier {sigma:g} does "
            f"not fit into integers of {_MOST_BITS} bits.",
            mend="Ask fewer sites or fewer rounds, or plan for a larger epsilon.",
        )
    return Grid(values, bound, sigma, honest, sites, step, sensitivity, variance, bits)


def _at(step: float, values: int, bound: float, sigma: float, honest: int) -> tuple[float, int]:
    """Sensitivity and variance of one site's noise at a step."""
    sensitivity = (1 + _SUMMED) * bound / step + math.sqrt(values)
    return sensitivity, math.ceil((sigma * sensitivity) ** 2 / honest * (1 + 2.0**-50))
