"""ε stays an upper bound, and an answer, at the ends of what can be asked for."""

from __future__ import annotations

import itertools
import math

import mpmath
import pytest

from lorica.client.ledger.composer import Composer
from lorica.common.errors import Code, LoricaError
from lorica.common.privacy.accountant import LEAST_DELTA, calibrate_noise, epsilon
from lorica.common.privacy.calibration import Part, share_budget
from lorica.common.privacy.event import PrivacyEvent

NEARLY_ALL = math.nextafter(1.0, 0.0)  # goes the way of sampled steps, and is the closed form's


def exact_delta(found: float, sigma: float, steps: int) -> float:
    """δ(ε) of so many Gaussian steps in 60 digits (Balle and Wang, theorem 8)."""
    with mpmath.workdps(60):
        mu = mpmath.sqrt(steps) / mpmath.mpf(sigma)
        e = mpmath.mpf(found)
        return float(mpmath.ncdf(mu / 2 - e / mu) - mpmath.exp(e) * mpmath.ncdf(-mu / 2 - e / mu))


@pytest.mark.parametrize("delta", [1e-5, 1e-7, LEAST_DELTA, 1e-12, 1e-14])
@pytest.mark.parametrize(
    ("sigma", "steps"), [(1.0, 1), (4.0, 40), (30.0, 1000), (100.0, 10_000), (400.0, 100_000)]
)
def test_composition_is_an_upper_bound_in_sixty_digits(
    sigma: float, steps: int, delta: float
) -> None:
    """dp-accounting's own composition understates ε at δ = 1e-14 by as much as a factor in δ."""
    event = PrivacyEvent(sigma, NEARLY_ALL, steps)
    for found in (epsilon([event], delta), Composer(delta).epsilon([event] * 2) / 1.0):
        times = steps if found == epsilon([event], delta) else 2 * steps
        assert exact_delta(found, sigma, times) <= delta * (1 + 1e-9)
    if delta >= LEAST_DELTA:  # and no loose one
        assert exact_delta(epsilon([event], delta) * 0.97, sigma, steps) > delta


SIGMAS = [5e-324, 1e-160, 1e-10, 1e-3, 0.05, 3.0, 1e5, 1e160, 1e308]
RATES = [5e-324, 1e-300, 1e-17, 1e-12, 1e-7, 0.5, NEARLY_ALL, 1.0]
STEPS = [1, 1000, 10**9, 10**15, 10**400]
DELTAS = [5e-324, 1e-300, 1e-14, 1e-9, 0.5, NEARLY_ALL]
BUDGETS = [5e-324, 1e-12, 1.0, 1e5, 1e300]


def cases(*lists: list, every: int) -> list[tuple]:
    return list(itertools.product(*lists))[::every]


def answer(call, *arguments) -> float:  # type: ignore[no-untyped-def]
    """What a call gives; a refusal must have a code, and anything else fails the test."""
    try:
        found = call(*arguments)
    except LoricaError as error:
        assert error.code in (Code.PRIVACY_CALIBRATION, Code.PRIVACY_EPSILON)
        return 0.0
    return found if isinstance(found, float) else min(found)


@pytest.mark.parametrize("delta", DELTAS)
def test_no_events_make_an_error_without_a_code_or_a_huge_allocation(delta: float) -> None:
    for sigma, rate, steps in cases(SIGMAS, RATES, STEPS, every=37):

        def told(sigma: float = sigma, rate: float = rate, steps: int = steps) -> float:
            events = [PrivacyEvent(sigma, rate, steps), PrivacyEvent(2.0, 0.1, 3)]
            return min(epsilon(events, delta), Composer(delta).epsilon(events))

        assert answer(told) >= 0


@pytest.mark.parametrize("budget", BUDGETS)
def test_no_plan_makes_an_error_without_a_code_or_a_huge_allocation(budget: float) -> None:
    for delta, rate, steps in cases(DELTAS, RATES, STEPS, every=67):
        assert answer(lambda d=delta, q=rate, t=steps: calibrate_noise(budget, d, q, t)) >= 0
        assert (
            answer(
                lambda d=delta, q=rate, t=steps: share_budget(
                    budget, d, [Part(q, t, 0.5), Part(1.0, 5, 0.5)]
                )
            )
            >= 0
        )
