"""The closed form of ε against 60-digit arithmetic, and where all-units steps meet sampled ones."""

from __future__ import annotations

import math

import mpmath
import pytest
from opacus.accountants import PRVAccountant

from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.gaussian import gaussian_epsilon

DELTAS = [1e-15, 1e-10, 1e-7, 1e-5, 1e-3, 0.3]
SIGMAS = [2e-4, 1e-3, 0.01, 0.2, 0.7, 1.0, 3.0, 10.0, 100.0, 3e4, 6e4]


def exact_delta(eps: float, sigma: float) -> mpmath.mpf:
    """Balle and Wang 2018, theorem 8, in 60 digits."""
    with mpmath.workdps(60):
        e, s = mpmath.mpf(eps), mpmath.mpf(sigma)
        first, second = 1 / (2 * s) - e * s, -1 / (2 * s) - e * s
        return mpmath.ncdf(first) - mpmath.exp(e) * mpmath.ncdf(second)


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("sigma", SIGMAS)
def test_epsilon_keeps_delta_exactly_and_wastes_nothing(sigma: float, delta: float) -> None:
    found = gaussian_epsilon(sigma, delta)
    assert exact_delta(found, sigma) <= delta
    if found > 0:
        assert exact_delta(found * (1 - 1e-4), sigma) > delta
    else:
        assert found == 0


@pytest.mark.parametrize(
    ("sigma", "delta"), [(5164957.981069598, 3.613755109048185e-13), (8.8e6, 4.4e-14), (3e7, 1e-9)]
)
def test_delta_is_kept_where_its_two_terms_nearly_cancel(sigma: float, delta: float) -> None:
    found = gaussian_epsilon(sigma, delta)
    assert exact_delta(found, sigma) <= delta
    assert exact_delta(found * (1 - 1e-4), sigma) > delta


def test_a_thousand_steps_are_one_mechanism() -> None:
    one = gaussian_epsilon(50.0 / math.sqrt(1000), 1e-5)
    assert epsilon([PrivacyEvent(50.0, 1.0, 1000)], 1e-5) == pytest.approx(one, rel=1e-9)
    apart = [PrivacyEvent(50.0, 1.0, 1) for _ in range(1000)]
    assert epsilon(apart, 1e-5) == pytest.approx(one, rel=1e-9)


def test_beside_sampled_steps_it_agrees_with_opacus_prv_accountant() -> None:
    events = [PrivacyEvent(9.0, 1.0, 12), PrivacyEvent(6.0, 1.0, 3), PrivacyEvent(1.5, 0.05, 60)]
    accountant = PRVAccountant()
    accountant.history = [(e.noise_multiplier, e.sample_rate, e.steps) for e in events]
    reference = accountant.get_epsilon(1e-5, eps_error=0.005)
    assert epsilon(events, 1e-5) == pytest.approx(reference, rel=0.01)


def test_noise_so_small_that_epsilon_is_in_the_millions_is_still_accounted() -> None:
    alone = epsilon([PrivacyEvent(0.2, 1.0, 1_000_000)], 1e-5)
    beside = epsilon([PrivacyEvent(0.2, 1.0, 1_000_000), PrivacyEvent(2.0, 0.1, 10)], 1e-5)
    assert 1e7 < alone <= beside < 1.01 * alone
