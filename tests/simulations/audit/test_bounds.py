"""The audit's statistics on mechanisms whose ε is known: seldom above it, and not far below."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from lorica.common.privacy.accountant import calibrate_noise, epsilon
from lorica.common.privacy.event import PrivacyEvent
from lorica.simulations.audit.attacks.gradient import guess, log_likelihood_ratio
from lorica.simulations.audit.attacks.membership import auc, split_bound, tpr_at
from lorica.simulations.audit.attacks.update import andrew_estimate
from lorica.simulations.audit.evidence.bounds import (
    Guesses,
    PrivacyCurve,
    attack_bound,
    clopper_pearson_low,
    gaussian_pair_epsilon,
    independent_rejects,
    one_run_bound,
    one_run_p_value,
    one_run_rejects,
)
from lorica.simulations.audit.evidence.family import Family, Stages

DELTA, ERROR, AUDITS = 1e-5, 0.05, 300
MOST_WRONG = stats.binom.isf(1e-4, AUDITS, ERROR) / AUDITS
"""Share of audits that may be wrong at level 5 %, exceeded by chance once in 10,000."""

Rejects = Callable[[Guesses, PrivacyCurve, float], bool]


def randomised_response(level: float) -> PrivacyCurve:
    """δ(ε) of answering with the coin with probability e^level / (1 + e^level)."""
    epsilons = np.union1d(np.arange(0, 20, 0.01), [level])
    true = 1 / (1 + math.exp(-level))
    return PrivacyCurve(epsilons, np.clip(true - np.exp(epsilons) * (1 - true), 0, None))


def subsampled(rate: float, steps: int, budget: float = 8.0) -> Family:
    """The mechanism that meets (budget, DELTA) exactly."""
    return Family(rate, steps, DELTA, calibrate_noise(budget, DELTA, rate, steps))


def play(
    family: Family, canaries: int, generator: np.random.Generator, noise: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and coins of one simulated training run with independent canaries."""
    coins = generator.random(canaries) < 0.5
    shape = (family.steps, canaries)
    noise = noise or family.claimed_noise
    drawn = (generator.random(shape) < family.sample_rate) & coins
    seen = drawn + noise * generator.standard_normal(shape)
    return log_likelihood_ratio(seen, family, noise), coins


@pytest.mark.parametrize(("correct", "level"), [(60, 0.5), (90, 1.5), (100, 4.0), (55, 0.0)])
def test_p_value_under_pure_dp_is_the_binomial_tail(correct: int, level: float) -> None:
    chance = 1 / (1 + math.exp(-level))
    got = one_run_p_value(Guesses(500, 100, correct), level, 0.0)
    assert got == pytest.approx(stats.binomtest(correct, 100, chance, "greater").pvalue)


def test_p_value_allows_for_a_mechanism_that_reveals_all_with_probability_delta() -> None:
    # Reveals every coin with probability 0.02: (0, 0.02)-DP, and all guesses right that often.
    assert one_run_p_value(Guesses(100, 100, 100), 0.0, 0.02) >= 0.02


@pytest.mark.parametrize(("made", "correct"), [(200, 150), (200, 200), (60, 55)])
def test_one_run_test_is_nearly_exact_for_randomised_response(made: int, correct: int) -> None:
    # Randomised response on all canaries attains its curve, so its binomial tail is possible.
    level = 1.0
    tail = float(stats.binom.sf(correct - 1, made, 1 / (1 + math.exp(-level))))
    guesses, curve = Guesses(made, made, correct), randomised_response(level)
    assert not one_run_rejects(guesses, curve, tail * 0.999)
    assert one_run_rejects(guesses, curve, min(1.0, tail * 1.5))


def test_bounds_from_randomised_response_cover_its_epsilon_and_are_near_it() -> None:
    generator, level, canaries = np.random.default_rng(0), 2.0, 2000
    chance = 1 / (1 + math.exp(-level))
    correct = generator.binomial(canaries, chance, AUDITS)
    bounds = np.array(
        [one_run_bound(Guesses(canaries, canaries, int(v)), 0.0, ERROR) for v in correct]
    )
    assert (bounds > level).mean() <= MOST_WRONG
    assert bounds.mean() > 0.9 * level


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 1), (0.5, 8), (0.1, 40)])
def test_true_mechanism_is_rejected_at_most_as_often_as_the_error_allows(
    rate: float, steps: int
) -> None:
    generator, family = np.random.default_rng([1, steps]), subsampled(rate, steps)
    curve = family.curve(family.claimed_noise)
    wrong = {one_run_rejects: 0, independent_rejects: 0}
    above = 0
    for _ in range(AUDITS):
        scores, coins = play(family, 300, generator)
        surest, everyone = guess(scores, coins, 90), guess(scores, coins, 300)
        wrong[one_run_rejects] += one_run_rejects(surest, curve, ERROR)
        wrong[independent_rejects] += independent_rejects(everyone, curve, ERROR)
        above += one_run_p_value(surest, 8.0, DELTA) <= ERROR
    assert wrong[one_run_rejects] / AUDITS <= MOST_WRONG
    assert wrong[independent_rejects] / AUDITS <= MOST_WRONG
    assert above / AUDITS <= MOST_WRONG


def test_dependent_canaries_fool_the_independent_test_and_not_the_one_run_tests() -> None:
    # With probability 0.2 all coins are told, else none: (0, 0.2)-DP.
    delta, canaries = 0.2, 200
    curve = PrivacyCurve(np.array([0.0, 30.0]), np.array([delta, delta]))
    told = Guesses(canaries, canaries, canaries)
    assert independent_rejects(told, curve, ERROR)
    assert not one_run_rejects(told, curve, ERROR)
    assert one_run_p_value(told, 0.0, delta) > ERROR


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 10), (0.45, 20)])
def test_bounds_are_below_the_claim_at_its_noise_and_above_it_at_half(
    rate: float, steps: int
) -> None:
    generator, family = np.random.default_rng(2), subsampled(rate, steps)
    for noise, low, high in ((1.0, 1.0, 8.0), (0.5, 8.0, 60.0)):
        scores, coins = play(family, 2000, generator, noise * family.claimed_noise)
        surest, everyone = guess(scores, coins, 600), guess(scores, coins, 2000)
        f_dp = family.bound(lambda c, g=surest: one_run_rejects(g, c, 0.015))
        tight = family.bound(lambda c, g=everyone: independent_rejects(g, c, 0.005))
        assert low < f_dp < high
        assert max(low, 0.65 * 8.0) < tight < high
        assert one_run_bound(surest, DELTA, 0.015) < f_dp  # it uses more of what is claimed


def test_curve_meets_the_gaussian_mechanisms_trade_off() -> None:
    # Closed form (Dong, Roth, Su 2019): f(α) = Φ(Φ⁻¹(1 - α) - μ), so 1 - f inverts as below.
    family = Family(1.0, 4, DELTA, 2.0)
    mu = math.sqrt(4) / 2.0
    curve = family.curve(2.0)
    assert curve.deltas[0] == pytest.approx(2 * stats.norm.cdf(mu / 2) - 1, abs=1e-3)
    for right in (1e-4, 0.01, 0.2, 0.6):  # up to where the slope of the trade-off is -1
        wrong = stats.norm.cdf(stats.norm.ppf(right) - mu)
        assert curve.least_wrong(right) == pytest.approx(wrong, rel=5e-3)


@pytest.mark.parametrize(("rate", "steps"), [(1.0, 3), (0.2, 40), (0.05, 80)])
def test_familys_epsilon_is_just_below_the_accountants(rate: float, steps: int) -> None:
    family = subsampled(rate, steps)
    of_record = epsilon([PrivacyEvent(family.claimed_noise, rate, steps)], DELTA)
    assert 0.95 * of_record < family.epsilon(family.claimed_noise) <= of_record


def test_stages_of_full_batches_are_one_gaussian_mechanism() -> None:
    events = (PrivacyEvent(1.2, 1.0, 1), PrivacyEvent(6.0, 1.0, 40))
    together = 1 / math.sqrt(1 / 1.2**2 + 40 / 6.0**2)
    stages, one = Stages(events, DELTA), Family(1.0, 1, DELTA, together)
    assert stages.epsilon(1.0) == pytest.approx(one.epsilon(together))
    assert stages.epsilon(0.5) == pytest.approx(one.epsilon(0.5 * together))
    assert stages.curve(1.0).deltas == pytest.approx(one.curve(together).deltas)


def test_epsilon_of_mixed_stages_is_just_below_the_accountants() -> None:
    events = (PrivacyEvent(2.0, 1.0, 1), PrivacyEvent(1.5, 0.3, 10))
    of_record = epsilon(list(events), DELTA)
    assert 0.95 * of_record < Stages(events, DELTA).epsilon(1.0) <= of_record


def test_nothing_is_bounded_by_guesses_that_are_no_better_than_chance() -> None:
    family = subsampled(0.3, 10)
    luck = Guesses(1000, 300, 150)
    assert one_run_bound(luck, DELTA, ERROR) == 0.0
    assert family.bound(lambda curve: one_run_rejects(luck, curve, ERROR)) == 0.0
    assert family.bound(lambda curve: independent_rejects(luck, curve, ERROR)) == 0.0


@pytest.mark.parametrize("delta", [1e-3, 1e-5])
def test_gaussian_pair_of_equal_spreads_is_the_gaussian_mechanism(delta: float) -> None:
    # Closed form (Balle and Wang 2018, theorem 5) as the reference.
    mu = 1.7
    got = gaussian_pair_epsilon(mu * 0.01, 0.01, 0.01, delta)
    upper, lower = mu / 2 - got / mu, -mu / 2 - got / mu
    assert stats.norm.cdf(upper) - math.exp(got) * stats.norm.cdf(lower) == pytest.approx(delta)


@pytest.mark.parametrize("spread", [0.5, 0.9, 1.3])
def test_gaussian_pair_of_unequal_spreads_agrees_with_integration(spread: float) -> None:
    delta, mean = 1e-4, 1.5
    got = gaussian_pair_epsilon(mean, spread, 1.0, delta)
    x = np.linspace(-30, 30, 2_000_001)
    p, q = stats.norm.pdf(x, mean, spread), stats.norm.pdf(x, 0, 1)
    both = [np.trapezoid(np.clip(a - math.exp(got) * b, 0, None), x) for a, b in ((p, q), (q, p))]
    assert max(both) == pytest.approx(delta, rel=1e-3)


def test_andrews_estimate_finds_the_epsilon_of_gaussian_cosines() -> None:
    generator, dimensions, mu = np.random.default_rng(3), 10_000, 2.0
    spread = 1 / math.sqrt(dimensions)
    true = gaussian_pair_epsilon(mu * spread, spread, spread, DELTA)
    covered = 0
    for _ in range(100):
        cosines = spread * (mu + generator.standard_normal(500))
        low, estimate, high = andrew_estimate(cosines, dimensions, DELTA, ERROR)
        assert low < estimate < high
        covered += low <= true <= high
    assert covered >= 90


def test_clopper_pearson_agrees_with_scipy() -> None:
    for successes, trials in ((0, 10), (3, 10), (10, 10), (250, 1000)):
        interval = stats.binomtest(successes, trials).proportion_ci(0.9, "exact")
        assert clopper_pearson_low(successes, trials, 0.05) == pytest.approx(interval.low)


def test_attack_bound_covers_randomised_response() -> None:
    generator, level = np.random.default_rng(4), 1.0
    chance = 1 / (1 + math.exp(-level))
    hits = generator.binomial(500, chance, AUDITS)
    alarms = generator.binomial(500, 1 - chance, AUDITS)
    bounds = [
        attack_bound(int(h), 500, int(a), 500, 0.0, ERROR)
        for h, a in zip(hits, alarms, strict=True)
    ]
    assert np.mean(np.array(bounds) > level) <= MOST_WRONG
    assert np.mean(bounds) > 0.7 * level


def test_membership_figures_of_known_scores() -> None:
    members, strangers = np.array([3.0, 4.0, 5.0]), np.array([1.0, 2.0, 3.0, 0.0])
    assert auc(members, strangers) == pytest.approx(11.5 / 12)
    assert tpr_at(members, strangers, 0.1) == pytest.approx(2 / 3)
    assert tpr_at(members, strangers, 0.3) == 1.0


def test_threshold_is_not_judged_on_the_scores_it_was_chosen_on() -> None:
    generator = np.random.default_rng(5)
    bounds = [
        split_bound(*generator.standard_normal((2, 60)), DELTA, ERROR, generator)
        for _ in range(100)
    ]
    assert np.mean(np.array(bounds) > 0) <= 0.12
