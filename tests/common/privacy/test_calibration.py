"""Noise calibrated to a budget: within it, not wastefully so, and as other libraries find it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from opacus.accountants import PRVAccountant
from scipy import stats
from scipy.optimize import brentq

from lorica.common.errors import Code
from lorica.common.privacy.accountant import calibrate_noise, epsilon
from lorica.common.privacy.calibration import Part, noise_beside, share_budget
from lorica.common.privacy.event import PrivacyEvent

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
SLOW = pytest.mark.slow("dp-accounting's calibration takes half a minute a setting")


@pytest.mark.parametrize(
    ("budget", "rate", "steps"),
    [*EASY, *(pytest.param(*setting, marks=SLOW) for setting in GRID)],
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


# Several mechanisms that share a budget.

MIXED: list[tuple[float, float, list[Part]]] = [
    (8.0, 1e-5, [Part(1.0, 1, 0.4), Part(1.0, 30, 0.6)]),
    (1.0, 1e-5, [Part(1.0, 1, 0.4), Part(1.0, 30, 0.6)]),
    (0.3, 1e-6, [Part(1.0, 1, 0.1), Part(1.0, 400, 0.9)]),
    (3.0, 1e-5, [Part(1.0, 7, 1.0), Part(1.0, 11, 2.0), Part(1.0, 2, 3.0)]),
    (2.0, 1e-3, [Part(1.0, 1, 1.0), Part(1.0, 1, 1.0)]),
    (20.0, 1e-5, [Part(1.0, 1, 0.4), Part(1.0, 30, 0.6)]),
    (8.0, 1e-5, [Part(1.0, 1, 0.4), Part(1.0, 30, 0.48), Part(0.25, 12, 0.12)]),
    (1.0, 1e-5, [Part(1.0, 1, 0.4), Part(1.0, 30, 0.48), Part(0.25, 12, 0.12)]),
    (3.0, 1e-5, [Part(0.5, 20, 0.5), Part(0.1, 20, 0.5)]),
    (8.0, 1e-6, [Part(1.0, 1, 0.4), Part(0.1, 100, 0.6)]),
    (0.5, 1e-5, [Part(1.0, 1, 0.5), Part(0.3, 40, 0.5)]),
    (2.0, 1e-5, [Part(1.0, 4, 0.05), Part(1.0, 1, 0.38), Part(0.2, 60, 0.57)]),
    (4.0, 1e-4, [Part(1.0, 1, 0.01), Part(0.25, 12, 0.99)]),
]
"""Budget ε, δ, the parts."""


def events_of(parts: list[Part], sigmas: list[float]) -> list[PrivacyEvent]:
    return [
        PrivacyEvent(sigma, part.sample_rate, part.steps)
        for part, sigma in zip(parts, sigmas, strict=True)
    ]


def gaussian_delta(sigma: float, eps: float) -> float:
    """δ of one Gaussian mechanism in closed form (Balle and Wang, arXiv 1805.06530)."""
    normal = stats.norm.cdf
    tail = math.exp(eps) * normal(-0.5 / sigma - eps * sigma)
    return float(normal(0.5 / sigma - eps * sigma) - tail)


def independent_epsilon(events: list[PrivacyEvent], delta: float) -> float:
    """ε without the accountant of record: closed form where all units take part, else Opacus'."""
    if all(event.sample_rate == 1.0 for event in events):
        one = sum(event.steps / event.noise_multiplier**2 for event in events) ** -0.5
        return float(brentq(lambda eps: gaussian_delta(one, eps) - delta, 0.0, 100.0))
    accountant = PRVAccountant()
    accountant.history = [(e.noise_multiplier, e.sample_rate, e.steps) for e in events]
    return float(accountant.get_epsilon(delta, eps_error=2e-3))


@pytest.mark.parametrize(("budget", "delta", "parts"), MIXED)
def test_a_shared_budget_is_kept_nearly_used_and_divided_as_asked(
    budget: float, delta: float, parts: list[Part]
) -> None:
    sigmas = share_budget(budget, delta, parts)
    events = events_of(parts, sigmas)
    assert 0.99 * budget < epsilon(events, delta) <= budget
    assert independent_epsilon(events, delta) == pytest.approx(budget, rel=0.01)
    costs = [e.sample_rate**2 * e.steps / e.noise_multiplier**2 for e in events]
    found = [cost / sum(costs) for cost in costs]
    shares = [part.share / sum(p.share for p in parts) for part in parts]
    assert found == pytest.approx(shares, rel=1e-6)


def test_composing_jointly_needs_less_noise_than_dividing_the_budget() -> None:
    parts = [Part(1.0, 1, 0.4), Part(1.0, 30, 0.6)]
    joint = share_budget(8.0, DELTA, parts)
    apart = [
        calibrate_noise(8.0 * part.share, part.share * DELTA, 1.0, part.steps) for part in parts
    ]
    assert all(j < 0.95 * a for j, a in zip(joint, apart, strict=True))


def test_one_part_gets_what_it_gets_alone() -> None:
    assert share_budget(2.0, DELTA, [Part(0.1, 60, 0.3)]) == [calibrate_noise(2.0, DELTA, 0.1, 60)]


def test_an_infinite_budget_is_shared_without_noise() -> None:
    assert share_budget(math.inf, DELTA, [Part(1.0, 1, 0.4), Part(0.1, 9, 0.6)]) == [0.0, 0.0]
    assert noise_beside(math.inf, DELTA, [PrivacyEvent(0.0, 1.0, 1)], 0.1, 9) == 0.0


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan])
def test_a_shared_budget_that_is_not_above_zero_is_refused(budget: float, refuses: Refuses) -> None:
    parts = [Part(1.0, 1, 0.4), Part(0.1, 9, 0.6)]
    refuses(Code.PRIVACY_EPSILON, lambda: share_budget(budget, DELTA, parts))


@pytest.mark.parametrize(
    ("budget", "fixed", "rate", "steps"),
    [
        (8.0, [PrivacyEvent(3.0, 1.0, 1)], 0.1, 60),
        (2.0, [PrivacyEvent(8.0, 1.0, 1)], 0.1, 60),
        (2.0, [PrivacyEvent(8.0, 1.0, 1), PrivacyEvent(40.0, 1.0, 5)], 0.3, 120),
        (1.0, [PrivacyEvent(5.0, 1.0, 1)], 1.0, 10),
    ],
)
def test_noise_beside_others_fills_the_budget(
    budget: float, fixed: list[PrivacyEvent], rate: float, steps: int
) -> None:
    sigma = noise_beside(budget, DELTA, fixed, rate, steps)
    events = [*fixed, PrivacyEvent(sigma, rate, steps)]
    assert 0.99 * budget < epsilon(events, DELTA) <= budget
    assert independent_epsilon(events, DELTA) == pytest.approx(budget, rel=0.01)
    assert sigma > calibrate_noise(budget, DELTA, rate, steps)


def test_nothing_beside_costs_nothing() -> None:
    assert noise_beside(2.0, DELTA, [], 0.1, 60) == calibrate_noise(2.0, DELTA, 0.1, 60)


def test_what_others_have_used_up_is_refused_and_not_searched_for(refuses: Refuses) -> None:
    """No noise helps when the fixed mechanisms alone spend the budget."""
    fixed = [PrivacyEvent(calibrate_noise(2.0, DELTA, 1.0, 1) * 0.99, 1.0, 1)]
    refuses(Code.PRIVACY_CALIBRATION, lambda: noise_beside(2.0, DELTA, fixed, 0.1, 60))
