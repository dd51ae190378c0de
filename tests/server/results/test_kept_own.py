"""Bits by randomised response: what is made of them, against their exact distribution."""

from __future__ import annotations

import itertools
import math

import pytest

from lorica.common.privacy.response import truth
from lorica.server.results.kept_own import KeptOwn, _chances, kept_own


def of(said: int, count: int, epsilon: float) -> KeptOwn:
    return kept_own([place < said for place in range(count)], count, epsilon)


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_the_estimate_has_no_bias_and_the_interval_its_coverage(count: int, epsilon: float) -> None:
    """Over all outcomes, weighted by their probabilities, for every true number."""
    right = truth(epsilon)
    for true in range(count + 1):
        chances = _chances(count, true, right)
        assert chances.sum() == pytest.approx(1)
        found = [of(said, count, epsilon) for said in range(count + 1)]
        mean = sum(c * f.estimate for c, f in zip(chances, found, strict=True))
        variance = sum(c * (f.estimate - mean) ** 2 for c, f in zip(chances, found, strict=True))
        assert mean == pytest.approx(true, abs=1e-9)
        error = math.sqrt(count * right * (1 - right)) / (2 * right - 1)
        assert math.sqrt(variance) == pytest.approx(error)
        covered = sum(c for c, f in zip(chances, found, strict=True) if f.low <= true <= f.high)
        assert covered >= 0.95 - 1e-12


def test_the_distribution_is_that_of_all_ways_to_answer() -> None:
    """By enumeration of which of three sites tell the truth; two keep their own."""
    right = truth(1.0)
    chances = [0.0] * 4
    for honest in itertools.product([True, False], repeat=3):
        bits = [tells == (site < 2) for site, tells in enumerate(honest)]
        chances[sum(bits)] += math.prod(right if tells else 1 - right for tells in honest)
    assert _chances(3, 2, right).tolist() == pytest.approx(chances)


def test_intervals_rise_with_the_bits_and_narrow_with_epsilon() -> None:
    found = [of(said, 20, 1.0) for said in range(21)]
    assert all(a.low <= b.low and a.high <= b.high for a, b in itertools.pairwise(found))
    assert all(0 <= one.low <= one.high <= 20 for one in found)
    assert of(10, 20, 0.1).high - of(10, 20, 0.1).low == 20, "so little says nothing"
    sure = of(5, 20, 10.0)
    assert (sure.low, sure.high) == (5, 5) and sure.estimate == pytest.approx(5, abs=0.01)


def test_a_site_that_lies_moves_the_estimate_by_no_more_than_one_bit_can() -> None:
    for epsilon in (0.5, 2.0):
        step = of(6, 20, epsilon).estimate - of(5, 20, epsilon).estimate
        assert step == pytest.approx(1 / (2 * truth(epsilon) - 1))


def test_many_sites_are_no_trouble() -> None:
    found = of(900, 2000, 0.5)
    assert found.low < found.estimate < found.high
    error = math.sqrt(2000 * truth(0.5) * truth(-0.5)) / (2 * truth(0.5) - 1)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.02)


def test_the_sentence_has_the_figures_and_who_was_silent() -> None:
    found = kept_own([True, False, False, False], 5, 2.0)
    assert KeptOwn.from_json(found.as_json()) == found and KeptOwn.from_json({}) is None
    assert f"About {found.estimate:.1f} of 4 sites" in found.sentence
    assert "1 of 5 did not answer" in found.sentence and "ε = 2" in found.sentence
    low = kept_own([False, False], 2, 1.0)
    assert low.estimate < 0 and "About 0.0 of 2 sites (95 % interval: 0 to" in low.sentence
