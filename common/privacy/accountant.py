"""Privacy events, the ε they cost, and the noise that a budget calls for.

The accountant of record is the PLD accountant of dp-accounting (Google), with pessimistic
discretisation: the ε it states is an upper bound on the true one (design rule 6). Steps that use
all units (q = 1) are composed exactly before it sees them, to one Gaussian mechanism; where nothing
else runs, its closed form is the ε (:mod:`lorica.common.privacy.gaussian`). The ε of bits by
randomised response is added to that of all else, where that is less than to compose them. Tests
compare both with Opacus' PRV accountant, with dp-accounting's own and with closed forms in high
precision.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

from lorica.common.errors import Code, LoricaError
from lorica.common.privacy.event import PrivacyEvent, told
from lorica.common.privacy.gaussian import gaussian_epsilon
from lorica.common.privacy.kept import recalled
from lorica.common.privacy.loss_grid import interval_for, rough_epsilon
from lorica.common.privacy.renyi import renyi_epsilon
from lorica.common.privacy.step_loss import step_loss

LEAST_DELTA = 1e-9
"""The smallest δ that Lorica's plans and sites may ask for. Far below it, what rounding adds to a
composed distribution is no longer small beside δ."""

LEAST_RATE = 1e-12
"""The smallest sample rate whose privacy loss is discretised."""

_LARGEST_SIGMA = 2.0**16
_MOST_STEPS = 1_000_000  # composed more often, rounding could reach usual δ
_SIGMAS = (0.02, 1e7)  # whose privacy losses can be discretised
_ROUNDING, _PER_STEP = 1e-13, 2.0**-48  # of δ: what a Fourier transform's rounding can hide
_SLOPE = 0.01  # of log σ: where the slope of log ε is measured
_CORRECTIONS = 3
COARSER = 8.0  # times the interval, where a search only has to come near
_SMALLEST_SIGMA = 0.2
_NEAR = 2e-4  # relative, of ε: close enough to the budget from below
_TOLERANCE = 1e-4  # relative, of σ


def epsilon(events: Iterable[PrivacyEvent], delta: float, *, coarseness: float = 1.0) -> float:
    """ε at ``delta`` of all ``events`` composed (PLD, an upper bound).

    Args:
        events: in any order; equal (σ, q) are merged, which makes long histories cheap, and so
            are all with q = 1.
        delta: probability δ in (0, 1).
        coarseness: above 1 the bound is looser and about as many times cheaper; for searches.

    Returns:
        ε in nats; 0 for no events, inf when an event has no noise.

    Raises:
        ValueError: δ is not in (0, 1).
    """
    events = list(events)
    found = _epsilon(events, delta, coarseness)
    if bits := told(events):
        rest = [event for event in events if not event.response]
        found = min(found, bits + _epsilon(rest, delta, coarseness))
    return found


def _epsilon(events: Iterable[PrivacyEvent], delta: float, coarseness: float) -> float:
    """:func:`epsilon` where bits count as the Gaussian mechanisms that they are made of."""
    totals = _merged(events, delta)
    if any(sigma == 0 for sigma, _, _ in totals):
        return math.inf
    return _epsilon_of(totals, delta, coarseness) if totals else 0.0


def composable(events: Iterable[PrivacyEvent], delta: float) -> bool:
    """Whether privacy losses can be discretised and composed, in bounded memory and with less
    rounding than half of δ; otherwise Rényi accounting gives the upper bound."""
    return _composable(_merged(events, delta), delta)


def _composable(totals: Iterable[tuple[float, float, int]], delta: float) -> bool:
    steps = 0
    for sigma, rate, count in totals:
        if not (_SIGMAS[0] <= sigma <= _SIGMAS[1] and rate >= LEAST_RATE):
            return False
        steps += count
    return steps <= _MOST_STEPS and _hidden(steps) <= delta / 2


def _hidden(steps: int) -> float:
    """More than rounding can take from δ(ε) when so many steps are composed.

    The transform's coefficients are off by some 2^-52 each, their powers by as many times more;
    what comes back is off by that in sum over the grid. Tests measure it in 60 digits.
    """
    return _ROUNDING + _PER_STEP * steps


def _merged(events: Iterable[PrivacyEvent], delta: float) -> tuple[tuple[float, float, int], ...]:
    """(σ, q, steps) of all events that touch data, sorted; equal (σ, q) are added up, and all
    noised ones with q = 1 are the one Gaussian mechanism that they compose to."""
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie between 0 and 1, got {delta}")
    totals: dict[tuple[float, float], int] = {}
    for event in events:
        if event.steps and event.sample_rate > 0:
            key = (event.noise_multiplier, event.sample_rate)
            totals[key] = totals.get(key, 0) + event.steps
    whole = [key for key in totals if key[1] == 1 and key[0] > 0]
    if whole:
        precision = sum(totals.pop(key) * precision_of(key[0]) for key in whole)
        if precision > 0:  # below, not even float64 sees it
            totals[(1 / math.sqrt(precision), 1.0)] = 1
    return tuple(sorted((*key, steps) for key, steps in totals.items()))


@functools.lru_cache(maxsize=4096)
def calibrate_noise(epsilon_budget: float, delta: float, sample_rate: float, steps: int) -> float:
    """The smallest noise multiplier σ that keeps ``steps`` steps within the budget.

    Args:
        epsilon_budget: ε in nats; inf gives σ = 0 (no privacy).
        delta: δ in (0, 1).
        sample_rate: q in (0, 1].
        steps: all the steps of the run, at least 1.

    Returns:
        σ with epsilon(σ) <= epsilon_budget by the accountant of record, and as a rule within a
        relative 2e-4 of it.
        Budgets so large that σ would fall below 0.2 get a σ of 0.2.

    Raises:
        LoricaError: LOR-401 for a budget that is not above 0, LOR-406 when no σ meets it.
    """
    if math.isnan(epsilon_budget) or epsilon_budget <= 0:
        raise LoricaError(
            Code.PRIVACY_EPSILON, f"Epsilon must be above 0 (or inf), got {epsilon_budget}."
        )
    if not (0 < delta < 1 and 0 < sample_rate <= 1 and steps >= 1):
        raise ValueError(f"delta={delta}, sample_rate={sample_rate}, steps={steps} out of range")
    if math.isinf(epsilon_budget):
        return 0.0
    if steps > _MOST_STEPS:
        raise LoricaError(
            Code.PRIVACY_CALIBRATION,
            f"{steps:,} steps are more than the {_MOST_STEPS:,} that the accountant composes.",
        )

    def excess(log_sigma: float, coarseness: float = 1.0) -> float:
        event = PrivacyEvent(math.exp(log_sigma), sample_rate, steps)
        spent = epsilon([event], delta, coarseness=coarseness)
        return math.log(max(spent, 1e-12) / epsilon_budget)

    def roughly(log_sigma: float) -> float:
        return excess(log_sigma, COARSER)

    def spent(sigma: float) -> float:
        return epsilon([PrivacyEvent(sigma, sample_rate, steps)], delta)

    def search() -> float:
        low, high = _bracket(roughly, epsilon_budget, delta, sample_rate, steps)
        if low < high:
            high = refined(excess, roughly, low, high)
        sigma, more = math.exp(high), _TOLERANCE
        while spent(sigma) > epsilon_budget:
            sigma, more = sigma * (1 + more), 2 * more
        return sigma

    if sample_rate == 1:  # a closed form, quicker than a file
        return search()
    asked = epsilon_budget, delta, sample_rate, steps
    return recalled("the noise of steps", asked, epsilon_budget, spent, search)


def refined(
    excess: Callable[[float], float], rough: Callable[[float], float], low: float, high: float
) -> float:
    """About where ``excess`` falls through 0, as a rule from below.

    Args:
        excess: of a logarithm of noise, the logarithm of ε over the budget; costly.
        rough: about the same, cheap.
        low: where ``rough`` is above 0.
        high: where it is not.
    """
    from scipy.optimize import brentq

    found = float(brentq(rough, low, high, xtol=_TOLERANCE))
    slope = min((rough(found + _SLOPE) - rough(found)) / _SLOPE, -_TOLERANCE)
    for _ in range(_CORRECTIONS):  # one or two do
        spent = excess(found)
        if -_NEAR < spent <= 0:
            break
        found -= (spent + _NEAR / 2) / slope
    return found


def first_guess(budget: float, delta: float, rate: float, steps: int) -> float:
    """Logarithm of about the σ that spends the budget, between the smallest and the largest."""
    low, high = math.log(_SMALLEST_SIGMA), math.log(_LARGEST_SIGMA)
    while high - low > 0.01:
        middle = (low + high) / 2
        if rough_epsilon(math.exp(middle), rate, steps, delta) > budget:
            low = middle
        else:
            high = middle
    return high if low > math.log(_SMALLEST_SIGMA) else low


def _bracket(
    excess: Callable[[float], float], budget: float, delta: float, rate: float, steps: int
) -> tuple[float, float]:
    """Logarithms of a σ that spends too much and of one that does not, near each other."""
    least, most = math.log(_SMALLEST_SIGMA), math.log(_LARGEST_SIGMA)
    low = high = first_guess(budget, delta, rate, steps)
    step = 0.02
    if excess(high) > 0:
        while excess(high) > 0:
            if high >= most:
                raise LoricaError(
                    Code.PRIVACY_CALIBRATION,
                    f"No noise multiplier up to {_LARGEST_SIGMA:,.0f} keeps {steps} steps at "
                    f"sample rate {rate:.4g} within epsilon={budget} at delta={delta}.",
                )
            low, high, step = high, min(high + step, most), 3 * step
    else:
        while excess(low) <= 0:
            if low <= least:
                return low, low
            low, high, step = max(low - step, least), low, 3 * step
    return low, high


@functools.lru_cache(maxsize=1024)
def _epsilon_of(
    totals: tuple[tuple[float, float, int], ...], delta: float, coarseness: float = 1.0
) -> float:
    if len(totals) == 1 and totals[0][1:] == (1.0, 1):
        return gaussian_epsilon(totals[0][0], delta)
    if not _composable(totals, delta):
        return renyi_epsilon((PrivacyEvent(*total) for total in totals), delta)
    composed: Any = None
    interval = coarseness * interval_for(totals, delta)
    for sigma, rate, steps in totals:
        part = _step_loss(sigma, rate, interval).self_compose(steps)
        composed = part if composed is None else composed.compose(part)
    steps = sum(count for _, _, count in totals)
    return float(composed.get_epsilon_for_delta(delta - _hidden(steps)))


def precision_of(sigma: float) -> float:
    """1/σ² of a noise multiplier, inf where it is beyond float64."""
    try:
        return 1 / sigma / sigma
    except (ZeroDivisionError, OverflowError):
        return math.inf


_step_loss = functools.lru_cache(maxsize=16)(step_loss)
