"""ε against closed forms, Opacus' PRV accountant and dp-accounting's own."""

from __future__ import annotations

import itertools
import math
import warnings

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.optimize import brentq
from scipy.special import log_ndtr

from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.renyi import renyi_epsilon

DELTA = 1e-5
SETTINGS = [
    *itertools.product((0.02, 0.1, 0.3), (1.5, 3.0), (20, 60, 400)),
    (0.005, 1.0, 400),
    (0.05, 0.7, 60),
    (1.0, 4.0, 10),
]
"""Sample rate q, noise multiplier σ, steps T."""


def gaussian_delta(eps: float, sigma: float) -> float:
    """δ(ε) of the Gaussian mechanism with sensitivity 1: Balle & Wang 2018, theorem 8."""
    first, second = 0.5 / sigma - eps * sigma, -0.5 / sigma - eps * sigma
    return math.exp(log_ndtr(first)) - math.exp(eps + log_ndtr(second))


def gaussian_epsilon(sigma: float, delta: float, sample_rate: float = 1.0) -> float:
    """The ε of one (subsampled) Gaussian step, exact.

    Subsampling with rate q turns (ε, δ) into (log(1 + q (e^ε - 1)), q δ), and that is tight:
    Balle, Barthe & Gaboardi 2018, theorem 8.
    """
    if gaussian_delta(0.0, sigma) * sample_rate <= delta:
        return 0.0
    high = (0.5 / sigma + 12) / sigma  # where δ is below Φ(-12)
    inner = brentq(lambda eps: sample_rate * gaussian_delta(eps, sigma) - delta, 0, high)
    return math.log1p(sample_rate * math.expm1(inner))


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize(
    ("sigma", "steps"), [(1.0, 1), (2.0, 5), (5.0, 60), (20.0, 60), (50.0, 1000)]
)
def test_unsampled_steps_cost_the_analytic_gaussians_epsilon_and_never_less(
    sigma: float, steps: int, delta: float
) -> None:
    true = gaussian_epsilon(sigma / math.sqrt(steps), delta)
    stated = epsilon([PrivacyEvent(sigma, 1.0, steps)], delta)
    assert true <= stated <= 1.01 * true


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("sigma", [0.8, 2.0])
def test_one_sampled_step_costs_the_closed_forms_epsilon_and_never_less(
    sigma: float, rate: float
) -> None:
    true = gaussian_epsilon(sigma, DELTA, rate)
    stated = epsilon([PrivacyEvent(sigma, rate, 1)], DELTA)
    assert true <= stated <= 1.01 * true


def test_different_unsampled_events_compose_as_one_gaussian() -> None:
    events = [PrivacyEvent(4.0, 1.0, 3), PrivacyEvent(7.0, 1.0, 10), PrivacyEvent(2.5, 1.0, 1)]
    precision = sum(event.steps / event.noise_multiplier**2 for event in events)
    true = gaussian_epsilon(1 / math.sqrt(precision), DELTA)
    assert true <= epsilon(events, DELTA) <= 1.01 * true


def prv_epsilon(*history: tuple[float, float, int], error: float) -> float:
    """Opacus' upper bound; ``error`` bounds its distance from the truth."""
    accountant = PRVAccountant()
    accountant.history = list(history)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy on log(0), Opacus on its own orders
        return accountant.get_epsilon(DELTA, eps_error=error)


@pytest.mark.parametrize(("rate", "sigma", "steps"), SETTINGS)
def test_epsilon_agrees_with_opacus_prv_accountant_to_one_per_cent(
    rate: float, sigma: float, steps: int
) -> None:
    stated = epsilon([PrivacyEvent(sigma, rate, steps)], DELTA)
    reference = prv_epsilon((sigma, rate, steps), error=stated / 400)
    assert stated == pytest.approx(reference, rel=0.01)


def test_different_sampled_events_agree_with_opacus_prv_accountant() -> None:
    events = [PrivacyEvent(1.5, 0.05, 40), PrivacyEvent(2.0, 0.2, 30)]
    stated = epsilon(events, DELTA)
    history = [(event.noise_multiplier, event.sample_rate, event.steps) for event in events]
    assert stated == pytest.approx(prv_epsilon(*history, error=stated / 400), rel=0.01)


@pytest.mark.parametrize(("rate", "sigma", "steps"), SETTINGS[::7])
def test_epsilon_agrees_with_dp_accountings_own_accountant(
    rate: float, sigma: float, steps: int
) -> None:
    step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(sigma))
    reference = PLDAccountant().compose(step, steps).get_epsilon(DELTA)
    assert epsilon([PrivacyEvent(sigma, rate, steps)], DELTA) == pytest.approx(reference, rel=0.01)


@pytest.mark.parametrize(("rate", "sigma", "steps"), SETTINGS[::4])
def test_renyi_accounting_is_looser_and_agrees_with_opacus(
    rate: float, sigma: float, steps: int
) -> None:
    event = PrivacyEvent(sigma, rate, steps)
    reference = RDPAccountant()
    reference.history = [(sigma, rate, steps)]
    loose = renyi_epsilon([event], DELTA)
    assert epsilon([event], DELTA) <= loose
    # the two libraries minimise over different orders
    assert loose == pytest.approx(reference.get_epsilon(DELTA), rel=0.05)


@settings(max_examples=5, deadline=None)
@given(parts=st.lists(st.integers(1, 30), min_size=1, max_size=6), data=st.data())
def test_equal_events_merge_and_order_does_not_matter(
    parts: list[int], data: st.DataObject
) -> None:
    other = PrivacyEvent(2.0, 0.05, 20)
    split = [PrivacyEvent(1.5, 0.1, steps) for steps in parts]
    mixed = data.draw(st.permutations([*split, other]))
    assert epsilon(mixed, DELTA) == epsilon([PrivacyEvent(1.5, 0.1, sum(parts)), other], DELTA)


def test_nothing_done_costs_nothing() -> None:
    for events in ([], [PrivacyEvent(1.0, 0.1, 0)], [PrivacyEvent(0.0, 0.1, 0)]):
        assert epsilon(events, DELTA) == 0
        assert renyi_epsilon(events, DELTA) == 0


def test_one_step_without_noise_has_no_privacy() -> None:
    events = [PrivacyEvent(5.0, 0.1, 100), PrivacyEvent(0.0, 1e-6, 1)]
    assert epsilon(events, DELTA) == math.inf
    assert renyi_epsilon(events, DELTA) == math.inf


def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise_and_delta() -> None:
    def cost(sigma: float = 3.0, rate: float = 0.1, steps: int = 60, delta: float = DELTA) -> float:
        return epsilon([PrivacyEvent(sigma, rate, steps)], delta)

    assert cost(steps=59) < cost() < cost(steps=61)
    assert cost(rate=0.09) < cost() < cost(rate=0.11)
    assert cost(sigma=3.1) < cost() < cost(sigma=2.9)
    assert cost(delta=2e-5) < cost() < cost(delta=5e-6)


@pytest.mark.parametrize(
    ("sigma", "rate", "steps"),
    [
        (-1.0, 0.1, 1),
        (math.nan, 0.1, 1),
        (math.inf, 0.1, 1),
        (1.0, -0.1, 1),
        (1.0, 1.1, 1),
        (1.0, math.nan, 1),
        (1.0, 0.1, -1),
    ],
)
def test_an_impossible_event_never_counts_as_free(sigma: float, rate: float, steps: int) -> None:
    with pytest.raises(ValueError):
        epsilon([PrivacyEvent(sigma, rate, steps)], DELTA)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_an_impossible_delta_is_refused(delta: float) -> None:
    with pytest.raises(ValueError):
        epsilon([PrivacyEvent(1.0, 0.1, 1)], delta)
