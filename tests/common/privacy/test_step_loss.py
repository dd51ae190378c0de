"""The loss of a step: dp-accounting's own, point by point, and the true δ(ε) in high precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from mpmath import mp, mpf

from lorica.common.privacy.step_loss import step_loss

MECHANISMS = [
    (1.0, 0.01, 1e-4),
    (0.467, 1e-4, 1e-4),
    (3.16, 0.1, 1e-5),
    (0.2, 0.5, 1e-3),
    (0.05, 0.3, 1e-2),
    (2.0, 0.999, 1e-4),
    (1.0, 1e-9, 1e-6),
    (0.01, 1e-6, 0.5),
    (300.0, 0.9, 1e-6),
    (0.8, 1.0, 1e-3),
]
"""(σ, q, interval)."""


def directions(loss: Any) -> list[Any]:
    return [part.to_dense_pmf() for part in (loss._pmf_remove, loss._pmf_add)]


@pytest.mark.parametrize(("sigma", "rate", "interval"), MECHANISMS)
def test_every_probability_is_dp_accountings_up_to_rounding(
    sigma: float, rate: float, interval: float
) -> None:
    """A probability is a second difference of δ divided by the interval: that scales rounding."""
    reference = privacy_loss_distribution.from_gaussian_mechanism(
        sigma, value_discretization_interval=interval, sampling_prob=rate
    )
    found = step_loss(sigma, rate, interval)
    assert found._symmetric == reference._symmetric
    for ours, theirs in zip(directions(found), directions(reference), strict=True):
        assert (ours._lower_loss, ours.size) == (theirs._lower_loss, theirs.size)
        assert ours._discretization == theirs._discretization
        assert ours._pessimistic_estimate and theirs._pessimistic_estimate
        np.testing.assert_allclose(ours._probs, theirs._probs, rtol=0, atol=4e-15 / interval)
        assert ours._infinity_mass == pytest.approx(theirs._infinity_mass, rel=1e-9, abs=1e-30)


def true_delta(sigma: float, rate: float, epsilon: float, *, adds: bool) -> float:
    """sup over sets of P(S) - exp(ε) Q(S): the loss is monotone in the noise, so that the best set
    is a half-line; its end is found by bisection, with no formula of the code's."""
    with mp.workdps(50):
        s, q, e = mpf(sigma), mpf(rate), mpf(epsilon)

        def without(x: mpf) -> mpf:
            return mp.npdf(x, 0, s)

        def with_unit(x: mpf) -> mpf:
            return (1 - q) * mp.npdf(x, 0, s) + q * mp.npdf(x, 1, s)

        above, below = (without, with_unit) if adds else (with_unit, without)

        def loss(x: mpf) -> mpf:
            return mp.log(above(x) / below(x))

        left, right = -60 * s, 1 + 60 * s  # the loss falls from left to right when a unit is added
        if (loss(left) > e) == (loss(right) > e):
            cut = right if loss(left) > e else left
        else:
            for _ in range(120):
                middle = (left + right) / 2
                if (loss(middle) > e) == (loss(left) > e):
                    left = middle
                else:
                    right = middle
            cut = (left + right) / 2

        def mass_without(x: mpf) -> mpf:  # on the side where the loss is above ε
            return mp.ncdf(x, 0, s) if adds else mp.ncdf(-x, 0, s)

        def mass_with(x: mpf) -> mpf:
            one = mp.ncdf(x, 1, s) if adds else mp.ncdf(-x, -1, s)
            return (1 - q) * mass_without(x) + q * one

        p, r = (mass_without, mass_with) if adds else (mass_with, mass_without)
        return float(max(p(cut) - mp.exp(e) * r(cut), 0))


@pytest.mark.parametrize("adds", [False, True], ids=["removed", "added"])
@pytest.mark.parametrize(("sigma", "rate", "interval"), MECHANISMS[:6])
def test_the_divergence_is_the_true_one_on_the_grid_and_no_less_between(
    sigma: float, rate: float, interval: float, adds: bool
) -> None:
    loss = step_loss(sigma, rate, interval)
    part = loss._pmf_add if adds else loss._pmf_remove
    top = part.to_dense_pmf()._lower_loss + part.size
    assert adds or true_delta(sigma, rate, interval, adds=False) > 1e-6
    for share in (1e-3, 0.02, 0.1, 0.3):
        on = max(1, int(share * top)) * interval
        for epsilon, exact in ((on, True), (on + 0.37 * interval, False)):
            stated = float(part.get_delta_for_epsilon(epsilon))
            true = true_delta(sigma, rate, epsilon, adds=adds)
            assert stated >= true - 1e-12
            if exact:
                assert stated == pytest.approx(true, rel=1e-6, abs=1e-12)
