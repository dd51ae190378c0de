"""Randomised response: one bit that tells the truth only more often than not.

Formal guarantee:
    A bit b is answered by b with probability p = 1 / (1 + exp(-ε)) and by its contrary otherwise
    (Warner 1965). Whatever b was, an answer's probability differs by a factor of at most
    p / (1 - p) = exp(ε): ε-DP with δ = 0, for *any* change of what b was made of, one unit or all.

    *As a Gaussian mechanism.* With s = ±1/2 for the two bits, the sign of s + N(0, σ²) is the truth
    with probability Φ(1 / (2σ)). At σ = :func:`response_noise` (ε) that is p, so the answer is
    post-processing of the Gaussian mechanism with noise multiplier σ and sensitivity 1: accounting
    that knows nothing else may take it for that, and overstates it.

    *As what it is*, ε adds up: (ε', δ) for all else and ε for the bit are (ε' + ε, δ) together.
    Its Rényi divergence of order α is log(p^α (1-p)^(1-α) + (1-p)^α p^(1-α)) / (α - 1), the same in
    both directions, and at most ε.
"""

from __future__ import annotations

import math
from statistics import NormalDist

LEAST, MOST = 1e-3, 10.0
"""ε of a bit, in nats."""

_UP = 1 + 1e-12  # for rounding: more noise, never less


def truth(epsilon: float) -> float:
    """Probability p that an answer is the truth."""
    return 1 / (1 + math.exp(-epsilon))


def response_noise(epsilon: float) -> float:
    """σ of the noise on ±1/2 whose sign tells the truth with probability at most :func:`truth`.

    Args:
        epsilon: from :data:`LEAST` to :data:`MOST`.

    Raises:
        ValueError: it is not.
    """
    if not LEAST <= epsilon <= MOST:
        raise ValueError(f"a bit's epsilon lies between {LEAST} and {MOST}, not at {epsilon}")
    return _UP * 0.5 / -NormalDist().inv_cdf(1 / (1 + math.exp(epsilon)))
