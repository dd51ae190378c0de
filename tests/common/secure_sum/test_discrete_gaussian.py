"""Exact draws: their distribution, and that the exact path decides as the fast one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import chi2, norm

from lorica.common.secure_sum import discrete_gaussian as module
from lorica.common.secure_sum.discrete_gaussian import MOST_VARIANCE, Words, discrete_gaussian


def _words(seed: int) -> Words:
    generator = np.random.default_rng(seed)
    return lambda count: generator.integers(0, 2**64, count, dtype=np.uint64)


@pytest.mark.parametrize("variance", [1, 2, 5, 100])
def test_draws_have_the_probabilities_of_the_definition(variance: int) -> None:
    count = 200_000
    drawn = discrete_gaussian(count, variance, _words(variance))
    reach = math.ceil(4 * math.sqrt(variance))
    x = np.arange(-reach, reach + 1)
    wide = np.arange(-20 * reach, 20 * reach + 1)
    expected = count * np.exp(-(x**2) / (2 * variance)) / np.exp(-(wide**2) / (2 * variance)).sum()
    counted = np.array([(drawn == value).sum() for value in x])
    rest = np.array([count - counted.sum(), count - expected.sum()])
    statistic = ((counted - expected) ** 2 / expected).sum()
    statistic += (rest[0] - rest[1]) ** 2 / rest[1]
    assert statistic < chi2.isf(1e-6, len(x))


@pytest.mark.parametrize("variance", [2**30 + 7, 2**41, MOST_VARIANCE])
def test_wide_draws_follow_the_normal_curve(variance: int) -> None:
    drawn = discrete_gaussian(100_000, variance, _words(1)) / math.sqrt(variance)
    edges = norm.ppf(np.linspace(0, 1, 51))
    counted = np.histogram(drawn, np.where(np.isfinite(edges), edges, np.sign(edges) * 1e9))[0]
    statistic = ((counted - 2000) ** 2 / 2000).sum()
    assert statistic < chi2.isf(1e-6, 49)


@pytest.mark.parametrize("variance", [3, 1000, 2**40])
def test_the_exact_path_decides_as_the_fast_one(
    variance: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = discrete_gaussian(300, variance, _words(5))
    monkeypatch.setattr(module, "_LOG_ERROR", 1e9)  # nothing is sure: all in decimal arithmetic
    monkeypatch.setattr(module, "_ACCEPT_ERROR", 1e9)
    monkeypatch.setattr(module, "_WORD", 1e9)
    assert (discrete_gaussian(300, variance, _words(5)) == fast).all()


def test_a_word_on_the_edge_is_decided_by_further_words() -> None:
    # The word nearest to exp(-1): 64 bits leave open on which side the number lies.
    from decimal import Context, Decimal

    inverse = Context(prec=60).exp(Decimal(-1))
    whole = Context(prec=60).multiply(inverse, Decimal(2**64))
    edge = int(whole)
    below, above = iter([0]), iter([2**64 - 1])
    fraction = module.Fraction(1)

    def of(stream: object) -> Words:
        return lambda count: np.array([next(stream)], dtype=np.uint64)  # type: ignore[call-overload]

    assert module._Uniform(edge, 64, of(below)).below_exp(fraction)
    assert not module._Uniform(edge, 64, of(above)).below_exp(fraction)


@pytest.mark.parametrize(("count", "variance"), [(-1, 1), (1, 0), (1, MOST_VARIANCE + 1)])
def test_figures_out_of_range_are_refused(count: int, variance: int) -> None:
    with pytest.raises(ValueError, match="no such draws"):
        discrete_gaussian(count, variance, _words(0))


def test_no_draws_need_no_words() -> None:
    assert len(discrete_gaussian(0, 7, _words(0))) == 0
