"""Noise calibrated to a budget: within it, not wastefully so, and as other libraries find it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from lorica.common.accounting import PrivacyEvent, calibrate_noise, epsilon
from lorica.common.errors import Code

Refuses = Callable[[Code, Callable[[], object]], str]

DELTA = 1e-5
BUDGETS = [
    *itertools.product((0.5, 2.0, 8.0), (0.05, 0.3), (60,)),
    (8.0, 1.0, 1),
    (2.0, 1.0, 60),
    (0.1, 0.02, 60),
    (0.1, 0.3, 400),
    (0.01, 0.1, 20),
    (0.001, 1.0, 1),
]
"""Budget ε, sample rate q, steps T."""


@pytest.mark.parametrize(("budget", "rate", "steps"), BUDGETS)
def test_calibrated_noise_keeps_the_budget_and_uses_nearly_all_of_it(
    budget: float, rate: float, steps: int
) -> None:
    sigma = calibrate_noise(budget, DELTA, rate, steps)
    assert 0.99 * budget < epsilon([PrivacyEvent(sigma, rate, steps)], DELTA) <= budget


def reference_sigma(budget: float, rate: float, steps: int, guess: float) -> float:
    """dp-accounting's own calibration, searched for around ``guess``."""

    def event(sigma: float) -> dp_accounting.DpEvent:
        step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
        return dp_accounting.SelfComposedDpEvent(step, steps)

    bracket = dp_accounting.ExplicitBracketInterval(0.9 * guess, 1.1 * guess)
    return dp_accounting.calibrate_dp_mechanism(
        PLDAccountant, event, budget, DELTA, bracket, tol=2e-3 * guess
    )


EASY = [(1.0, 0.1, 60), (3.0, 0.3, 60), (2.0, 1.0, 60)]
GRID = list(itertools.product((0.5, 2.0, 8.0), (0.02, 0.1, 0.3), (60, 400)))


@pytest.mark.parametrize(
    ("budget", "rate", "steps"),
    [*EASY, *(pytest.param(*setting, marks=pytest.mark.slow) for setting in GRID)],
)
def test_noise_agrees_with_dp_accountings_own_calibration_to_one_per_cent(
    budget: float, rate: float, steps: int
) -> None:
    sigma = calibrate_noise(budget, DELTA, rate, steps)
    assert sigma == pytest.approx(reference_sigma(budget, rate, steps, sigma), rel=0.01)


def rising(values: list[float]) -> bool:
    return all(later >= earlier * (1 - 1e-3) for earlier, later in itertools.pairwise(values))


def test_noise_grows_with_rate_and_steps_and_falls_with_epsilon_and_delta() -> None:
    rates = [calibrate_noise(2.0, DELTA, rate, 60) for rate in (0.1, 0.3, 1.0)]
    steps = [calibrate_noise(2.0, DELTA, 0.1, count) for count in (60, 400)]
    budgets = [calibrate_noise(eps, DELTA, 0.1, 60) for eps in (2.0, 0.5)]
    deltas = [calibrate_noise(2.0, delta, 0.1, 60) for delta in (1e-5, 1e-6)]
    for sigmas in (rates, steps, budgets, deltas):
        assert rising(sigmas)
        assert sigmas[-1] > 1.05 * sigmas[0]


def test_an_infinite_budget_needs_no_noise() -> None:
    assert calibrate_noise(math.inf, DELTA, 0.1, 60) == 0.0


@pytest.mark.parametrize("budget", [0.0, -1.0, -math.inf, math.nan])
def test_a_budget_that_is_not_above_zero_is_refused(budget: float, refuses: Refuses) -> None:
    detail = refuses(Code.PRIVACY_EPSILON, lambda: calibrate_noise(budget, DELTA, 0.1, 60))
    assert str(budget) in detail


def test_a_budget_that_no_noise_meets_is_refused(refuses: Refuses) -> None:
    detail = refuses(Code.PRIVACY_CALIBRATION, lambda: calibrate_noise(1e-6, DELTA, 0.3, 1000))
    assert "1000 steps" in detail and "1e-06" in detail


@pytest.mark.parametrize(
    ("delta", "rate", "steps"),
    [(0.0, 0.1, 1), (1.0, 0.1, 1), (1e-5, 0.0, 1), (1e-5, 1.1, 1), (1e-5, 0.1, 0)],
)
def test_arguments_out_of_range_are_refused(delta: float, rate: float, steps: int) -> None:
    with pytest.raises(ValueError, match="out of range"):
        calibrate_noise(1.0, delta, rate, steps)


def test_a_budget_that_any_noise_meets_still_gets_noise() -> None:
    sigma = calibrate_noise(1e6, DELTA, 1.0, 1)
    assert sigma > 0
    assert epsilon([PrivacyEvent(sigma, 1.0, 1)], DELTA) <= 1e6
