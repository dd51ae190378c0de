"""Three figures of ε, and the discrete mechanism against an exact computation of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lorica.common.errors import Code, LoricaError
from lorica.common.privacy.accountant import calibrate_noise, epsilon
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.shared_noise import (
    SharedNoise,
    accounted,
    distance,
    figures,
    require_close,
)


def _discrete(variance: float, reach: int) -> np.ndarray:
    """N_Z(0, variance) on [-reach, reach]."""
    x = np.arange(-reach, reach + 1)
    weights = np.exp(-(x.astype(float) ** 2) / (2 * variance))
    return weights / weights.sum()


def _sum_of(variance: float, shares: int, reach: int) -> np.ndarray:
    """The sum of ``shares`` draws by convolution."""
    one = _discrete(variance, reach)
    found = one
    for _ in range(shares - 1):
        found = np.convolve(found, one)
    return found


def _delta_of(
    noise: np.ndarray, shift: int, rate: float, steps: int, eps: float, *, removed: bool
) -> float:
    """δ at ε of ``steps`` steps, by convolving the exact privacy losses on a fine grid, each
    rounded to the nearest point: neither pessimistic nor optimistic, and no library's code."""
    base = np.concatenate([noise, np.zeros(shift)])
    moved = np.concatenate([np.zeros(shift), noise])
    mixed = (1 - rate) * base + rate * moved
    upper, lower = (mixed, base) if removed else (base, mixed)
    keep = (upper > 1e-18) & (lower > 1e-18)
    loss = np.log(upper[keep] / lower[keep])
    width = 2e-4
    place = np.rint(loss / width).astype(int)
    low = place.min()
    pmf = np.bincount(place - low, weights=upper[keep])
    size = 1 << math.ceil(math.log2(len(pmf) * steps))
    composed = np.fft.irfft(np.fft.rfft(pmf, size) ** steps, size)
    losses = (np.arange(size) + low * steps) * width
    above = losses > eps
    return float((composed[above] * -np.expm1(eps - losses[above])).sum())


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 6), (0.1, 40), (0.02, 60)])
@pytest.mark.parametrize("removed", [True, False])
def test_epsilon_is_that_of_the_exact_discrete_mechanism(
    rate: float, steps: int, removed: bool
) -> None:
    shares, shift, sigma = 4, 60, 1.5 if rate < 1 else 4.0
    variance = (sigma * shift) ** 2 / shares
    noise = _sum_of(variance, shares, int(12 * math.sqrt(variance)))
    delta = 1e-5
    stated = epsilon([PrivacyEvent(sigma, rate, steps)], delta)
    exact = _delta_of(noise, shift, rate, steps, stated, removed=removed)
    assert exact <= delta * 1.005
    if removed:  # the direction that costs more: the figure is tight, too
        assert exact >= delta * 0.95


def test_epsilon_of_one_share_is_that_of_another_library() -> None:
    from dp_accounting.pld import privacy_loss_distribution

    sigma, shift, rate, steps = 2.0, 50, 0.2, 20
    theirs = privacy_loss_distribution.from_discrete_gaussian_mechanism(
        sigma * shift, sensitivity=shift, sampling_prob=rate
    ).self_compose(steps)
    ours = epsilon([PrivacyEvent(sigma, rate, steps)], 1e-5)
    assert theirs.get_epsilon_for_delta(1e-5) == pytest.approx(ours, rel=5e-3)


def test_the_distance_bounds_the_true_one() -> None:
    # Exactly: log of the ratio between a rounded Gaussian and the sum of discrete ones.
    from scipy.special import ndtr

    shares, variance = 3, 30
    noise = _sum_of(variance, shares, 150)
    x = np.arange(len(noise)) - len(noise) // 2
    deviation = math.sqrt(shares * variance)
    near = np.abs(x) <= 6 * deviation  # beyond, the subtraction is nothing but rounding
    low, high = (x[near] - 0.5) / deviation, (x[near] + 0.5) / deviation
    rounded = np.where(low > 0, ndtr(-low) - ndtr(-high), ndtr(high) - ndtr(low))
    apart = np.abs(np.log(rounded / noise[near])).max()
    single = distance(variance=variance, shares=shares, draws=1, target=0.999)[0]
    assert 0 < apart <= 15**2 / (24 * shares * variance)
    assert single > 0


@pytest.mark.parametrize(("shares", "variance"), [(2, 0.4), (3, 0.6), (8, 0.5)])
def test_a_sum_of_discrete_gaussians_is_as_near_to_one_as_the_theorem_says(
    shares: int, variance: float
) -> None:
    noise = _sum_of(variance, shares, 12)
    middle, whole = len(noise) // 2, shares * variance
    reach = int(5 * math.sqrt(whole))
    near = noise[middle - reach : middle + reach + 1]
    apart = np.abs(np.log(near / _discrete(whole, middle)[middle - reach : middle + reach + 1]))
    terms = [math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, shares)]
    assert 0 < apart.max() <= 5 * sum(terms)


def test_three_figures_are_those_of_their_noise() -> None:
    events = [PrivacyEvent(5.0, 1.0, 10), PrivacyEvent(3.0, 0.1, 20)]
    found = figures(events, 1e-5, SharedNoise(honest=9, threshold=12))

    def at(factor: float) -> float:
        scaled = [PrivacyEvent(e.noise_multiplier * factor, e.sample_rate, e.steps) for e in events]
        return epsilon(scaled, 1e-5)

    assert found.colluding == at(1.0)
    assert found.sums == at(math.sqrt(12 / 9)) < found.colluding
    assert found.alone == at(1 / 3) > found.colluding


def test_a_plans_noise_leaves_room_for_the_integers() -> None:
    for budget in (0.5, 8.0):
        kept, delta = accounted(budget, 1e-5)
        sigma = calibrate_noise(kept, delta, 1.0, 43)
        assert epsilon([PrivacyEvent(sigma, 1.0, 43)], delta) <= kept < budget
        variance = math.ceil((sigma * 2**20) ** 2 / 10)
        require_close(budget, 1e-5, variance=variance, honest=10, draws=43 * 10**6)


def test_a_grid_too_coarse_is_refused() -> None:
    with pytest.raises(LoricaError) as caught:
        require_close(8.0, 1e-5, variance=10_000, honest=10, draws=10**7)
    assert caught.value.code is Code.PRIVACY_CALIBRATION


def test_without_privacy_nothing_is_kept_back() -> None:
    assert accounted(math.inf, 1e-5) == (math.inf, 1e-5)
    require_close(math.inf, 1e-5, variance=0, honest=3, draws=10**9)
