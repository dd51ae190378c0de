"""ε of one Gaussian mechanism in closed form, to which all unsampled steps compose.

Formal statement:
    Releasing f(D) + N(0, σ²·I) with L2 sensitivity 1 is (ε, δ)-DP exactly for

        δ >= Φ(1/(2σ) - εσ) - exp(ε)·Φ(-1/(2σ) - εσ)

    (Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", 2018, theorem 8).
    Mechanisms of that kind with noise σ_i, run T_i times each and chosen adaptively, compose to
    exactly one with 1/σ² = Σ T_i/σ_i² (Dong, Roth and Su, "Gaussian Differential Privacy", 2019,
    corollary 3.3). No discretisation is needed, so the ε is exact but for a margin of 1e-9 that
    pays for rounding.
"""

from __future__ import annotations

import math

_MARGIN = 1e-9  # relative, above the root: more than what the search leaves
_ROUNDING = 2.0**-50  # of the terms of a difference of logarithms: more than what they are off by


def gaussian_epsilon(sigma: float, delta: float) -> float:
    """The smallest ε, in nats, at which the mechanism is (ε, δ)-DP, from above.

    Args:
        sigma: standard deviation of the noise divided by the L2 sensitivity, above 0.
        delta: δ in (0, 1).
    """
    from scipy.optimize import brentq

    target = math.log(delta)

    def excess(found: float) -> float:
        return log_gaussian_delta(found, sigma) - target

    if excess(0.0) <= 0:
        return 0.0
    high = 0.5 / sigma**2 + math.sqrt(-2 * target) / sigma  # by zero-concentrated DP: enough
    found = float(brentq(excess, 0.0, high, xtol=_MARGIN / sigma, rtol=1e-14, maxiter=500))
    return found + _MARGIN * (found + 2 / sigma)


def log_gaussian_delta(epsilon: float, sigma: float) -> float:
    """Logarithm of the smallest δ at which the mechanism is (ε, δ)-DP, rounded up: the difference
    of its two terms is nearly all rounding where σ is large and δ small."""
    from scipy.special import log_ndtr

    half = 0.5 / sigma
    first = float(log_ndtr(half - epsilon * sigma))
    second = float(log_ndtr(-half - epsilon * sigma))
    below = epsilon + second - first
    below -= _ROUNDING * (epsilon - second - first + 1.0)
    return first + math.log(-math.expm1(below)) if below < 0 else -math.inf
