"""How alike sites are by noised sums, against the exact sums they were made of."""

from __future__ import annotations

import pytest
import torch

from lorica.common.plan import RunPlan
from lorica.common.privacy.of_plan import public_privacy
from lorica.server.rounds.alike import MOST, alike
from lorica.server.rounds.measures import RoundMeasures

PLAN = RunPlan().replace(task={"labels": ["a", "b"]})
OPEN = PLAN.replace(privacy={"epsilon": float("inf")})


def sums(values: int = 900) -> torch.Tensor:
    """Two sites with much in common, and one apart from both."""
    generator = torch.Generator().manual_seed(3)
    parts = torch.randn(3, values, generator=generator, dtype=torch.float64)
    return torch.stack([parts[0], parts[0] + 0.5 * parts[1], parts[2]]) * 2


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def test_without_noise_they_are_the_cosines() -> None:
    exact = sums()
    found = alike(exact, 900, 0.0)
    for a in range(3):
        for b in range(3):
            assert found.cosines[a][b] == pytest.approx(cosine(exact[a], exact[b]))
    assert found.error == 0


def test_what_noise_takes_is_given_back_within_the_error_that_is_told() -> None:
    """Over 200 draws: the mean is the exact cosine, the spread at most the error."""
    exact, deviation = sums(), 1.5
    generator = torch.Generator().manual_seed(4)
    draws = []
    for _ in range(200):
        noise = deviation * torch.randn(3, 900, generator=generator, dtype=torch.float64)
        found = alike(exact + noise, 900, deviation)
        assert found.error is not None and found.cosines[0][1] is not None
        draws.append((found.cosines[0][1], found.error, cosine(*(exact + noise)[:2])))
    told, errors, plain = torch.tensor(draws, dtype=torch.float64).T
    wanted = cosine(exact[0], exact[1])
    assert float(told.mean()) == pytest.approx(wanted, abs=0.02)
    assert float(plain.mean()) < wanted - 0.2  # what is told without
    assert float(told.std()) < 1.3 * float(errors.mean())


def test_of_noise_alone_nothing_is_told() -> None:
    generator = torch.Generator().manual_seed(5)
    told = 0
    for _ in range(100):
        found = alike(3.0 * torch.randn(2, 500, generator=generator), 500, 3.0)
        told += found.cosines[0][1] is not None
    assert told <= 8


def measured(plan: RunPlan, round: int, sites: int) -> RoundMeasures:
    measures = RoundMeasures(plan, round, sites)
    for site, row in enumerate(sums()[[0, 1, 2] * (sites // 3 + 1)][:sites]):
        measures.add(f"site-{site}", {"head.weight": row.float().view(2, 450)}, 1.0)
    return measures


def test_a_round_of_class_sums_tells_it_and_no_other_round_does() -> None:
    found = measured(OPEN, 1, 3).finish().alike
    assert found is not None
    assert found.cosines[0][1] == pytest.approx(cosine(*sums()[:2]), abs=1e-5)
    assert measured(OPEN, 2, 3).finish().alike is None  # a round of the head
    assert measured(OPEN, 1, 1).finish().alike is None
    assert measured(OPEN, 1, MOST + 1).finish().alike is None


def test_the_noise_is_that_of_the_plan() -> None:
    """Sums as long as their noise have nothing to tell; without privacy the same ones do."""
    sigma = public_privacy(PLAN).of_round(1).noise_multiplier
    generator = torch.Generator().manual_seed(6)
    rows = sigma * torch.randn(2, 2, 450, generator=generator)
    for plan, told in ((PLAN, False), (OPEN, True)):
        measures = RoundMeasures(plan, 1, 2)
        for site, row in enumerate(rows):
            measures.add(f"site-{site}", {"head.weight": row}, 1.0)
        found = measures.finish().alike
        assert found is not None and (found.cosines[0][1] is not None) == told
    measures = RoundMeasures(PLAN, 1, 1)
    measures.add_sum({"head.weight": rows[0]}, sites=3, shares=1.0)
    assert measures.finish().alike is None  # sealed
