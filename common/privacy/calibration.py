"""Noise for several mechanisms that share one budget."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorica.common.errors import Code, LoricaError
from lorica.common.privacy.accountant import (
    COARSER,
    LEAST_RATE,
    calibrate_noise,
    epsilon,
    first_guess,
    refined,
)
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.kept import recalled

_TOLERANCE = 1e-4  # relative, of the common factor
_STEP = 0.02  # the first on the way from a guess, each next twice as long
_FARTHEST = math.log(2.0**10)  # from the first guess, on the way to a σ that meets the budget


@dataclass(frozen=True)
class Part:
    """One of the mechanisms: the same step many times, for a share of the budget."""

    sample_rate: float
    """q, probability of a unit to be in a step's batch."""
    steps: int
    """How often it runs in the whole run, at least 1."""
    share: float
    """Its share of the budget, above 0, in any unit common to the parts."""

    def __post_init__(self) -> None:
        PrivacyEvent(1.0, self.sample_rate, self.steps)  # raises where it is none
        if self.sample_rate < LEAST_RATE:
            raise LoricaError(
                Code.PRIVACY_CALIBRATION,
                f"A sample rate of {self.sample_rate:.3g} is below the {LEAST_RATE:g} that noise "
                "can be calibrated for.",
            )

    @property
    def relative_noise(self) -> float:
        """σ up to the common factor: the leading term q²·steps/σ² of the Rényi cost (and, for
        q = 1, the exact cost) is then in proportion to ``share``."""
        return self.sample_rate * math.sqrt(self.steps / self.share)


def share_budget(budget: float, delta: float, parts: Sequence[Part]) -> list[float]:
    """Noise multipliers of all ``parts`` that together spend the budget.

    They are composed jointly, which is tighter than to give each a piece of ε and δ. The σ of
    parts that use all units (q = 1) follow from one Gaussian mechanism: those with σ_i, run T_i
    times, are together exactly one with 1/σ² = Σ T_i/σ_i².

    Args:
        budget: ε in nats; inf gives σ = 0 everywhere.
        delta: δ in (0, 1).
        parts: at least one.

    Returns:
        σ of every part, in their order, to a relative 2e-4, with
        epsilon(all of them) <= budget by the accountant of record.

    Raises:
        LoricaError: LOR-401 for a budget that is not above 0, LOR-406 when no σ meets it.
    """
    if len(parts) == 1:
        return [calibrate_noise(budget, delta, parts[0].sample_rate, parts[0].steps)]
    factor = _factor(budget, delta, tuple(parts))
    return [factor * part.relative_noise for part in parts]


def noise_beside(
    budget: float, delta: float, fixed: Sequence[PrivacyEvent], sample_rate: float, steps: int
) -> float:
    """The smallest σ of a mechanism that, together with ``fixed``, keeps within the budget.

    Args:
        budget: ε in nats; inf gives 0.
        delta: δ in (0, 1).
        fixed: what else runs, within the budget when alone.
        sample_rate: q in (0, 1].
        steps: at least 1.

    Raises:
        LoricaError: LOR-401 for a budget that is not above 0, LOR-406 when no σ meets it.
    """
    if not fixed or math.isinf(budget) or math.isnan(budget) or budget <= 0:
        return calibrate_noise(budget, delta, sample_rate, steps)
    if epsilon(fixed, delta) >= budget:
        raise _unmet(budget, delta)
    return _beside(budget, delta, tuple(fixed), sample_rate, steps)


@functools.lru_cache(maxsize=1024)
def _beside(
    budget: float,
    delta: float,
    fixed: tuple[PrivacyEvent, ...],
    sample_rate: float,
    steps: int,
) -> float:
    def excess(log_sigma: float, coarseness: float = 1.0) -> float:
        event = PrivacyEvent(math.exp(log_sigma), sample_rate, steps)
        return _over([*fixed, event], budget, delta, coarseness)

    def search() -> float:
        # As if all were Gaussian mechanisms: what precision 1/σ² the fixed ones leave.
        whole = calibrate_noise(budget, delta, 1.0, 1)
        shares = (
            min(1.0, e.sample_rate * whole / e.noise_multiplier) ** 2 * e.steps for e in fixed
        )
        start = first_guess(budget, delta, sample_rate, steps)
        start -= math.log(max(1 - sum(shares), 1e-3)) / 2
        return math.exp(_smallest(excess, start, _unmet(budget, delta)))

    def spent(sigma: float) -> float:
        return epsilon([*fixed, PrivacyEvent(sigma, sample_rate, steps)], delta)

    asked = budget, delta, fixed, sample_rate, steps
    return recalled("the noise of steps beside others", asked, budget, spent, search)


def _over(events: list[PrivacyEvent], budget: float, delta: float, coarseness: float) -> float:
    """Logarithm of the events' ε over the budget."""
    return math.log(max(epsilon(events, delta, coarseness=coarseness), 1e-12) / budget)


def _unmet(budget: float, delta: float) -> LoricaError:
    return LoricaError(
        Code.PRIVACY_CALIBRATION,
        f"Beside what else the run does, no noise keeps it within epsilon={budget:g} at "
        f"delta={delta:g}.",
    )


def _smallest(excess: Callable[..., float], start: float, unmet: LoricaError) -> float:
    """The smallest x with excess(x) <= 0, from above and to a tolerance; excess falls in x.

    Args:
        excess: of x, and of a coarseness at which it is cheaper.
        start: about that x.
        unmet: raised when there is none up to start + :data:`_FARTHEST`.
    """

    def rough(x: float) -> float:
        return excess(x, COARSER)

    low = high = start
    step = _STEP
    while rough(high) > 0:
        low, high, step = high, high + step, 2 * step
        if high > start + _FARTHEST:
            raise unmet
    while rough(low) <= 0:
        low, high, step = low - step, low, 2 * step
    found = refined(excess, rough, low, high)
    more = _TOLERANCE
    while excess(found) > 0:
        found, more = found + more, 2 * more
    return found


@functools.lru_cache(maxsize=256)
def _factor(budget: float, delta: float, parts: tuple[Part, ...]) -> float:
    """The smallest factor of the relative noises that keeps within the budget."""
    if math.isinf(budget):
        return 0.0

    def events(factor: float) -> list[PrivacyEvent]:
        return [
            PrivacyEvent(factor * part.relative_noise, part.sample_rate, part.steps)
            for part in parts
        ]

    def excess(log_factor: float, coarseness: float = 1.0) -> float:
        return _over(events(math.exp(log_factor)), budget, delta, coarseness)

    def guess() -> float:
        precision = sum(part.steps / part.relative_noise**2 for part in parts)
        return math.log(calibrate_noise(budget, delta, 1.0, 1) * math.sqrt(precision))

    if any(part.sample_rate < 1 for part in parts):
        return recalled(
            "the common factor of several noises",
            (budget, delta, parts),
            budget,
            lambda factor: epsilon(events(factor), delta),
            lambda: math.exp(_smallest(excess, guess(), _unmet(budget, delta))),
        )
    start = guess()
    while excess(start) > 0:
        start += _TOLERANCE
    return math.exp(start)
