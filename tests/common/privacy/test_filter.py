"""The filters against adversaries that choose noise in view of results, in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import log_ndtr

from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.filter import Filter, Tally, filter_for
from lorica.common.privacy.renyi import ORDERS, renyi_epsilon

DELTA = 1e-5


def gaussian_delta(epsilons: np.ndarray, mu: float) -> np.ndarray:
    """δ(ε) of the Gaussian mechanism with 1/σ = ``mu``, for ε of any sign (Balle and Wang)."""
    if mu == 0:
        return np.asarray(-np.expm1(np.minimum(epsilons, 0.0)))
    first = np.exp(log_ndtr(mu / 2 - epsilons / mu))
    return np.asarray(first - np.exp(epsilons + log_ndtr(-mu / 2 - epsilons / mu)))


def counted(filter_: Filter, *mus: float) -> float:
    tally = Tally()
    tally.add(PrivacyEvent(1 / mu, 1.0, 1) for mu in mus if mu > 0)
    return filter_.epsilon(tally)


@pytest.mark.parametrize("budget", [0.5, 3.0, 8.0])
@pytest.mark.parametrize("known", [(PrivacyEvent(5.0, 1.0, 10),), (PrivacyEvent(1.0, 0.1, 10),)])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.8])
def test_whoever_chooses_the_second_noise_in_view_of_the_first_result_stays_within_delta(
    budget: float, known: tuple[PrivacyEvent, ...], part: float
) -> None:
    """The best that an adversary can do with two Gaussian steps: after seeing the first result, the
    one second step among all that the filter lets run, none included, that gains most."""
    chosen = filter_for(budget, DELTA, known)
    most = max(mu for mu in np.linspace(1e-3, 10, 4000) if counted(chosen, mu) <= budget)
    first = part * most
    room = math.sqrt(most**2 - first**2)
    assert counted(chosen, first, room) <= budget * (1 + 1e-6)
    assert counted(chosen, first, 1.1 * room) > budget
    x = np.linspace(-12, 12, 20001)
    loss = first * x + first**2 / 2  # of a result x·σ + 1, the unit present
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    best = np.max(
        [gaussian_delta(budget - loss, mu) for mu in (0.0, room / 4, room / 2, room)], axis=0
    )
    assert np.trapezoid(density * best, x) <= DELTA


def test_a_filter_never_allows_more_than_fixed_parameters_would() -> None:
    events = [PrivacyEvent(0.9, 0.02, 300), PrivacyEvent(4.0, 1.0, 5), PrivacyEvent(2.0, 0.3, 40)]
    for known in ((events[0],), (events[1],), tuple(events)):
        for budget in (0.5, 2.0, 8.0, 20.0):
            tally = Tally()
            tally.add(events)
            assert filter_for(budget, DELTA, known).epsilon(tally) >= epsilon(events, DELTA)


def test_full_batch_gaussian_steps_are_counted_nearly_exactly() -> None:
    """Smith and Thakurta: they compose adaptively as they would if fixed beforehand."""
    events = [PrivacyEvent(4.0, 1.0, 30), PrivacyEvent(9.0, 1.0, 20)]
    tally = Tally()
    tally.add(events)
    exact = epsilon(events, DELTA)
    assert exact <= filter_for(10.0, DELTA, tuple(events)).epsilon(tally) <= 1.01 * exact


def test_sampled_steps_are_counted_at_the_order_that_has_most_room_for_them() -> None:
    event = PrivacyEvent(0.94, 0.1, 100)
    chosen = filter_for(9.0, DELTA, (event,))
    tally = Tally()
    tally.add([event])
    assert chosen.gaussian_share == 0
    assert (
        renyi_epsilon([event], DELTA)
        <= chosen.epsilon(tally)
        <= 1.05 * renyi_epsilon([event], DELTA)
    )
    assert 2 <= ORDERS[chosen.order] <= 4


def test_nothing_is_free_of_charge_but_nothing() -> None:
    chosen = filter_for(8.0, DELTA, (PrivacyEvent(1.0, 0.1, 10),))
    assert chosen.epsilon(Tally()) == 0
    for event in (PrivacyEvent(0.0, 1e-9, 1), PrivacyEvent(1e-200, 0.5, 1)):
        assert chosen.epsilon(Tally().plus([event])) == math.inf
    one = Tally().plus([PrivacyEvent(1.0, 0.1, 1)])
    assert chosen.epsilon(one) < chosen.epsilon(one.plus([PrivacyEvent(1.0, 0.1, 1)]))
