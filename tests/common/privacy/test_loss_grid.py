"""The discretisation: no less than a finer one says, little more, and bounded work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import pytest
from dp_accounting.pld import privacy_loss_distribution

from lorica.common.errors import Code
from lorica.common.privacy.accountant import calibrate_noise, epsilon
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.loss_grid import interval_for, rough_epsilon

DELTA = 1e-5
Refuses = Callable[[Code, Callable[[], object]], str]


FINER = [
    (0.467, 1e-4, 100_000, 2e-5, 2.9870899232629626),
    (0.406, 9.6e-5, 80, 4e-5, 1.0061065595967955),
    (3.16, 0.1, 60, 5e-6, 0.9992492254847855),
]
"""σ, q, T, an interval finer than the accountant's, and dp-accounting's ε on that grid."""


@pytest.mark.parametrize(("sigma", "rate", "steps", "finer", "reference"), FINER)
def test_epsilon_is_hardly_above_that_of_a_finer_grid(
    sigma: float, rate: float, steps: int, finer: float, reference: float
) -> None:
    stated = epsilon([PrivacyEvent(sigma, rate, steps)], DELTA)
    assert 0.9999 * reference <= stated <= 1.002 * reference


@pytest.mark.slow("seconds for each figure; it is stored above")
@pytest.mark.parametrize(("sigma", "rate", "steps", "finer", "reference"), FINER)
def test_the_finer_grids_figures_are_dp_accountings(
    sigma: float, rate: float, steps: int, finer: float, reference: float
) -> None:
    step = privacy_loss_distribution.from_gaussian_mechanism(
        sigma, value_discretization_interval=finer, sampling_prob=rate
    )
    found = step.self_compose(steps).get_epsilon_for_delta(DELTA)
    assert found == pytest.approx(reference, rel=1e-9)


@pytest.mark.parametrize(
    ("budget", "rate", "steps"),
    [(3.0, 1e-4, 10**5), (1.0, 9.6e-5, 80), (8.0, 0.3, 10**6), (1e6, 1.0, 10**6), (8.0, 1e-8, 9)],
)
def test_calibration_takes_seconds_whatever_the_plan(
    budget: float, rate: float, steps: int
) -> None:
    begun = time.process_time()
    sigma = calibrate_noise(budget, DELTA, rate, steps)
    assert time.process_time() - begun < 15  # 1 to 4 where it was measured
    assert epsilon([PrivacyEvent(sigma, rate, steps)], DELTA) <= budget


def test_more_steps_than_the_accountant_composes_are_refused_at_once(refuses: Refuses) -> None:
    detail = refuses(Code.PRIVACY_CALIBRATION, lambda: calibrate_noise(8.0, DELTA, 0.1, 10**11))
    assert "100,000,000,000" in detail


@pytest.mark.parametrize("sigma", [0.01, 0.2, 1.0, 1e5])
@pytest.mark.parametrize("rate", [1e-9, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 10**6])
def test_every_mechanism_has_an_interval(sigma: float, rate: float, steps: int) -> None:
    interval = interval_for([(sigma, rate, steps)], DELTA)
    assert 1e-6 <= interval < math.inf


def test_many_small_events_ask_for_a_finer_interval_than_one() -> None:
    alone = interval_for([(3.0, 0.1, 1)], DELTA)
    assert interval_for([(30.0, 0.01, 1_000_000)], DELTA) < alone
    assert interval_for([(3.0, 0.1, 1), (30.0, 0.01, 1_000_000)], DELTA) < alone


def test_the_rough_figure_is_near_and_above_the_stated_one() -> None:
    for sigma, rate, steps in ((1.0, 0.1, 60), (5.0, 1.0, 10), (0.6, 0.01, 1000)):
        stated = epsilon([PrivacyEvent(sigma, rate, steps)], DELTA)
        assert stated <= rough_epsilon(sigma, rate, steps, DELTA) <= 1.5 * stated
