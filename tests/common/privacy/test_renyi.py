"""Rényi divergences against quadrature in high precision, and ε against Opacus."""

from __future__ import annotations

import itertools
import math

import mpmath
import pytest
from opacus.accountants import RDPAccountant

from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.renyi import ORDERS, divergences, renyi_epsilon

DELTA = 1e-5


def exact(sigma: float, rate: float, order: float, *, removed: bool) -> float:
    """D_α of one step by quadrature with 40 digits."""
    with mpmath.workdps(40):
        s, q, a = mpmath.mpf(sigma), mpmath.mpf(rate), mpmath.mpf(order)
        without = lambda x: mpmath.npdf(x, 0, s)  # noqa: E731
        with_it = lambda x: (1 - q) * mpmath.npdf(x, 0, s) + q * mpmath.npdf(x, 1, s)  # noqa: E731
        top, bottom = (with_it, without) if removed else (without, with_it)
        middle = a if removed else 0
        points = [middle - 30 * s, middle - 5 * s, 0, 1, middle + 5 * s, middle + 30 * s]
        found = mpmath.quad(lambda x: top(x) ** a * bottom(x) ** (1 - a), sorted(points))
        return float(mpmath.log(found) / (a - 1))


@pytest.mark.parametrize(
    ("sigma", "rate"), [(0.5, 0.01), (1.0, 0.1), (4.0, 0.5), (8.0, 0.9), (20.0, 1e-4), (2.0, 1.0)]
)
def test_a_divergence_is_no_less_than_either_direction_s_and_equal_at_whole_orders(
    sigma: float, rate: float
) -> None:
    found = dict(zip(ORDERS, divergences(sigma, rate), strict=True))
    for order in (2.0, 2.5, 3.0, 5.0, 10.0):
        removed = exact(sigma, rate, order, removed=True)
        added = exact(sigma, rate, order, removed=False)
        assert found[order] >= max(removed, added)
        if order.is_integer():
            assert found[order] == pytest.approx(removed, rel=3e-9)


@pytest.mark.parametrize(("sigma", "rate", "steps"), [(0.8, 0.01, 1000), (4.0, 0.3, 60), (9, 1, 1)])
def test_epsilon_is_looser_than_pld_and_agrees_with_opacus(
    sigma: float, rate: float, steps: int
) -> None:
    event = PrivacyEvent(sigma, rate, steps)
    reference = RDPAccountant()
    reference.history = [(sigma, rate, steps)]
    loose = renyi_epsilon([event], DELTA)
    assert epsilon([event], DELTA) <= loose
    # the libraries minimise over different orders, and their conversion is the older one
    assert loose == pytest.approx(reference.get_epsilon(DELTA), rel=0.05)


def test_events_of_equal_noise_add_up_and_nothing_costs_nothing() -> None:
    event = PrivacyEvent(2.0, 0.1, 3)
    assert renyi_epsilon([event] * 4, DELTA) == renyi_epsilon([PrivacyEvent(2.0, 0.1, 12)], DELTA)
    for nothing in ([], [PrivacyEvent(1.0, 0.1, 0)], [PrivacyEvent(0.0, 0.0, 5)]):
        assert renyi_epsilon(nothing, DELTA) == 0
    assert renyi_epsilon([event, PrivacyEvent(0.0, 1e-9, 1)], DELTA) == math.inf


@pytest.mark.parametrize("sigma", [5e-324, 1e-160, 1e-3, 1e3, 1e160, 1e308])
@pytest.mark.parametrize("rate", [5e-324, 1e-12, 0.5, math.nextafter(1, 0), 1.0])
def test_no_input_gives_anything_but_a_divergence(sigma: float, rate: float) -> None:
    found = divergences(sigma, rate)
    assert not any(map(math.isnan, found)) and min(found) >= 0
    assert all(a <= b * (1 + 1e-9) for a, b in itertools.pairwise(found))
