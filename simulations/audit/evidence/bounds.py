"""The statistics of the audit: how much privacy loss do so many right guesses prove?

A game of m canaries: each is in the training data or not by a fair coin of its own; the auditor
sees what training released and guesses "in" or "out" for r of them, r fixed beforehand. The more
of the r guesses are right, the more was leaked. Each function here answers with the chance that
a mechanism which keeps its promise leaks so much, or with the least ε that this leaves possible.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import stats

_LARGEST_EPSILON = 100.0
_ROUNDS = 40  # bisections


@dataclass(frozen=True)
class Guesses:
    """What the auditor guessed and how often that was right."""

    canaries: int
    """m: canaries with a coin each."""
    made: int
    """r: guesses made; the others are abstentions."""
    correct: int
    """v: guesses that were right."""

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.made <= self.canaries:
            raise ValueError(f"0 <= correct <= made <= canaries does not hold for {self}.")


@dataclass(frozen=True)
class PrivacyCurve:
    """δ(ε) of a mechanism, averaged over adding and removing one unit.

    δ₊(ε) = sup_S P(S) - e^ε Q(S) and δ₋(ε) = sup_S Q(S) - e^ε P(S), where P is the output with
    the unit and Q without it; ``deltas`` is (δ₊ + δ₋) / 2 or anything above it.
    """

    epsilons: np.ndarray
    """ε >= 0, ascending from 0, shape (n,)."""
    deltas: np.ndarray
    """δ at each, shape (n,)."""

    def least_wrong(self, right: float) -> float:
        """Least probability of a wrong guess beside a right one's: max over ε of
        e^-ε · (right - δ(ε)), and at least 0. (The inverse of the map F̄ of
        :func:`one_run_rejects`.)"""
        return max(0.0, float(np.max((right - self.deltas) * np.exp(-self.epsilons))))


def one_run_p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Chance of so many right guesses under *any* (ε, δ)-DP mechanism, at most.

    Steinke, Nasr, Jagielski, "Privacy auditing with one (1) training run" (arXiv 2305.08846),
    section 5 and appendix D: with W ~ Binomial(r, e^ε / (1 + e^ε)),

        P[correct >= v] <= P[W >= v] + 2·m·δ · max_{1<=i<=v} P[v > W >= v - i] / i.

    Nothing is assumed of the mechanism but (ε, δ)-DP under adding or removing one canary.
    """
    m, r, v = guesses.canaries, guesses.made, guesses.correct
    chance = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(stats.binom.sf(v - 1, r, chance))
    if v == 0 or delta == 0.0:
        return min(1.0, tail)
    below = np.cumsum(stats.binom.pmf(np.arange(v - 1, -1, -1), r, chance))
    steepest = float(np.max(below / np.arange(1, v + 1)))
    return min(1.0, tail + 2 * m * delta * steepest)


def one_run_bound(guesses: Guesses, delta: float, error: float) -> float:
    """The largest ε for which (ε, δ)-DP is rejected at level ``error``; 0 when none is."""
    return _largest(lambda epsilon: one_run_p_value(guesses, epsilon, delta) <= error)


def one_run_rejects(guesses: Guesses, curve: PrivacyCurve, error: float) -> bool:
    """Whether so many right guesses have a chance below ``error`` under *any* mechanism whose
    privacy curve is at most ``curve``, however canaries depend on each other.

    Mahloujifar, Melis, Chaudhuri, "Auditing f-differential privacy in one run" (arXiv
    2410.22235), with both directions of the neighbouring relation kept apart, which is tighter
    where they differ (as under Poisson sampling). Let p_j be the probability of exactly j right
    guesses and J any set of counts. "Guess i is right and j ∈ J are right in all" says, given all
    other coins, the same of the output as "guess i is wrong and j - 1 are right in all" with coin
    i turned; so for every ε, P[the former] <= δ(ε) + e^ε · P[the latter]. The mean over i is

        Σ_{j∈J} (j/m)·p_j  <=  F̄( Σ_{j∈J} ((r - j + 1)/m)·p_{j-1} ),  F̄(x) = min_ε δ(ε) + e^ε·x.

    The tail sets J = {j >= i} suffice. Suppose P[correct >= v] = ``error``. Moving its mass
    down to j = v, and any mass beyond what the inequalities ask for down to the next j, keeps
    them true; so going down from v with the least p_j they allow decides whether any
    distribution fits: if the total passes 1, none does. (Here ``right`` and ``wrong`` are the
    sums of (j/m)·p_j and ((r-j)/m)·p_j so far, which end at r/m together.) Other sets J would say
    a little more: for randomised response the chance found is up to 1.5 times the exact one.
    """
    m, r, v = guesses.canaries, guesses.made, guesses.correct
    right, wrong = error * v / m, error * (r - v) / m
    for j in range(v - 1, -1, -1):
        needed = max(wrong, curve.least_wrong(right))
        right += j / (r - j) * (needed - wrong)
        wrong = needed
        if right + wrong > r / m:
            return True
    return False


def independent_rejects(guesses: Guesses, curve: PrivacyCurve, error: float) -> bool:
    """Whether so many right guesses have a chance below ``error`` when the canaries' scores are
    independent and each is at most as telling as ``curve`` says.

    No guess about a fair coin is right more often than (1 + TV) / 2, where the total variation
    TV = δ(0) (Neyman and Pearson); so the number of right ones is at most Binomial.
    """
    best = (1.0 + float(curve.deltas[0])) / 2
    return float(stats.binom.sf(guesses.correct - 1, guesses.made, min(1.0, best))) <= error


def gaussian_pair_epsilon(
    mean: float, deviation: float, reference_deviation: float, delta: float
) -> float:
    """ε at δ of telling N(mean, deviation²) from N(0, reference_deviation²), the larger of both
    directions. Andrew et al., "One-shot empirical privacy estimation for federated learning"
    (arXiv 2302.03098), section 3: the score of included canaries against that of fresh ones."""
    return _largest(
        lambda epsilon: (
            _gaussian_delta((mean, deviation), (0.0, reference_deviation), epsilon) > delta
            or _gaussian_delta((0.0, reference_deviation), (mean, deviation), epsilon) > delta
        )
    )


def attack_bound(
    hits: int, members: int, alarms: int, strangers: int, delta: float, error: float
) -> float:
    """The least ε that allows an attack with these counts of right and false positives.

    (ε, δ)-DP implies TPR <= e^ε·FPR + δ and 1 - FPR <= e^ε·(1 - TPR) + δ (Kairouz, Oh,
    Viswanath 2015). TPR is replaced by its lower and FPR by its upper Clopper–Pearson limit, each
    at ``error`` / 2. Valid when outcomes are independent and the attack was chosen on other data.
    """
    low = clopper_pearson_low(hits, members, error / 2)
    high = 1.0 - clopper_pearson_low(strangers - alarms, strangers, error / 2)
    bounds = [0.0]
    for likely, unlikely in ((low, high), (1.0 - high, 1.0 - low)):
        if likely > delta:
            bounds.append(math.log((likely - delta) / unlikely) if unlikely else math.inf)
    return max(bounds)


def clopper_pearson_low(successes: int, trials: int, error: float) -> float:
    """Lower limit of a probability, exceeded by the true one with a chance of 1 - ``error``."""
    if successes == 0:
        return 0.0
    return float(stats.beta.ppf(error, successes, trials - successes + 1))


def _gaussian_delta(p: tuple[float, float], q: tuple[float, float], epsilon: float) -> float:
    """P(S) - e^ε·Q(S) of the best S, where log p/q > ε: a side of a quadratic's roots."""
    (a, s), (b, t) = p, q
    # log p/q - ε = x²·square + x·linear + constant
    square = (1 / t**2 - 1 / s**2) / 2
    linear = a / s**2 - b / t**2
    constant = b**2 / (2 * t**2) - a**2 / (2 * s**2) + math.log(t / s) - epsilon

    def mass(low: float, high: float) -> float:
        return _between(low, high, a, s) - math.exp(epsilon) * _between(low, high, b, t)

    if abs(square) < 1e-12 * (1 / s**2 + 1 / t**2):
        if linear == 0.0:
            return 0.0
        edge = -constant / linear
        return max(0.0, mass(edge, math.inf) if linear > 0 else mass(-math.inf, edge))
    under = linear**2 - 4 * square * constant
    if under <= 0:
        return 0.0  # nowhere, or everywhere, where 1 - e^ε <= 0
    low, high = sorted((-linear + sign * math.sqrt(under)) / (2 * square) for sign in (-1, 1))
    inside = mass(low, high)
    return max(0.0, inside if square < 0 else mass(-math.inf, low) + mass(high, math.inf))


def _between(low: float, high: float, centre: float, spread: float) -> float:
    """Probability of an interval under a Gaussian, exact in both tails."""
    low, high = (low - centre) / spread, (high - centre) / spread
    if low > 0:
        low, high = -high, -low
    return (math.erfc(-high / math.sqrt(2)) - math.erfc(-low / math.sqrt(2))) / 2


def _largest(rejected: Callable[[float], bool]) -> float:
    """The largest ε in [0, 100] that is rejected, where all smaller ones are too; else 0."""
    low, high = 0.0, _LARGEST_EPSILON
    if not rejected(low):
        return 0.0
    if rejected(high):
        return high
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low
