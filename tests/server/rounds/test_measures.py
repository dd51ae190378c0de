"""What is said of a round's updates, against direct computation on whole updates."""

from __future__ import annotations

import math

import pytest
import torch

from lorica.common.adapter.state import State
from lorica.common.plan import RunPlan
from lorica.common.privacy.of_plan import public_privacy
from lorica.server.rounds.measures import RoundMeasures

LABELS = {"labels": ["a", "b"]}
SUMS = RunPlan().replace(task=LABELS)
LOCAL = SUMS.replace(
    training={"mode": "local"}, aggregation={"method": "ffa"}, rounds={"warm_start": 0}
)


def updates(count: int, values: int, seed: int = 0) -> list[State]:
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(values, generator=generator)
    return [
        {"x": common + torch.randn(values, generator=generator), "y": torch.full((2, 2), float(k))}
        for k in range(count)
    ]


def flat(update: State) -> torch.Tensor:
    return torch.cat([tensor.double().flatten() for tensor in update.values()])


@pytest.mark.parametrize(("values", "within"), [(500, 1e-6), (40_000, 0.03)])
def test_agreement_is_the_cosine_with_the_weighted_mean_of_the_others(
    values: int, within: float
) -> None:
    """Whole updates are exact, sketched ones near."""
    given, weights = updates(4, values), [1.0, 2.0, 5.0, 3.0]
    measures = RoundMeasures(LOCAL, 2, 4)
    for number, (update, weight) in enumerate(zip(given, weights, strict=True)):
        measures.add(f"site-{number}", update, weight)
    found = measures.finish()
    vectors = [flat(update) for update in given]
    mean = sum(w * v for w, v in zip(weights, vectors, strict=True)) / sum(weights)
    assert found.mean_norm == pytest.approx(float(mean.norm()), rel=1e-5)
    assert found.agreement is not None
    for number, vector in enumerate(vectors):
        others = mean * sum(weights) - weights[number] * vector
        cosine = float(torch.nn.functional.cosine_similarity(vector, others, dim=0))
        assert found.agreement[f"site-{number}"] == pytest.approx(cosine, abs=within)
    assert found.noise_norm is None  # the plan alone does not say


@pytest.mark.ceiling(15, "60 rounds, each with sketches of its own")
@pytest.mark.parametrize(
    "asked",
    [4, 1_000, 10_000, pytest.param(20_000, marks=pytest.mark.slow("60 rounds of long sketches"))],
)
def test_the_error_of_an_agreement_is_the_stated_one(asked: int) -> None:
    """Over many rounds of four sites, as if so many were asked; k as the docstring says."""
    kept = {4: 16_384, 1_000: 4_194, 10_000: 419, 20_000: 256}[asked]
    vectors = torch.randn(4, 20_000, generator=torch.Generator().manual_seed(2)) + 0.5
    others = vectors.double().sum(0) - vectors
    exact = torch.nn.functional.cosine_similarity(vectors.double(), others, dim=1)
    errors = []
    for round in range(1, 61):  # every round draws sketches of its own
        measures = RoundMeasures(LOCAL, round, asked)
        for number, vector in enumerate(vectors):
            measures.add(str(number), {"x": vector}, 1.0)
        found = measures.finish().agreement or {}
        errors += [found[str(number)] - float(cosine) for number, cosine in enumerate(exact)]
    stated = float((1 - exact**2).mean()) / math.sqrt(kept)
    assert float(torch.tensor(errors).square().mean().sqrt()) == pytest.approx(stated, rel=0.25)


def test_what_is_kept_of_all_sites_together_is_bounded() -> None:
    """Bytes that stay of 300 and of 10,000 sites' updates, each of 20,000 values."""
    for sites in (300, 10_000):
        measures = RoundMeasures(LOCAL, 1, sites)
        measures.add("one", {"x": torch.ones(20_000)}, 1.0)
        assert measures._sketches is not None
        held = measures._sketches.untyped_storage().nbytes()
        assert 14 * 2**20 < held <= 16 * 2**20


@pytest.mark.parametrize("signal", [0.0, 3.0])
def test_signal_to_noise_is_that_of_the_mean(signal: float) -> None:
    """Against a planted signal of a known length, in noise of the plan's σ·C."""
    sites, values = 5, 20_000
    deviation = public_privacy(SUMS).of_round(5).noise_multiplier * SUMS.privacy.clip_norm
    expected = deviation * math.sqrt(values / sites)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(values, generator=generator)
    planted = signal * expected * direction / direction.norm()
    measures = RoundMeasures(SUMS, 5, sites)
    for number in range(sites):
        noise = deviation * torch.randn(values, generator=generator)
        measures.add(f"site-{number}", {"head.weight": planted + noise}, 1000.0 * number)
    found = measures.finish()
    assert found.noise_norm == pytest.approx(expected)
    assert found.signal_to_noise == pytest.approx(signal, abs=0.15)
    agreements = list((found.agreement or {}).values())
    assert all((value > 0.3) == bool(signal) for value in agreements)


def test_nothing_is_said_of_nothing_and_no_agreement_of_one() -> None:
    measures = RoundMeasures(SUMS, 2, 1)
    assert measures.finish().mean_norm is None
    measures.add("alone", {"head.weight": torch.ones(3)}, 1.0)
    assert measures.finish().agreement == {}


def test_updates_that_are_zero_do_not_divide_by_zero() -> None:
    measures = RoundMeasures(LOCAL, 2, 2)
    for name in ("a", "b"):
        measures.add(name, {"x": torch.zeros(4)}, 1.0)
    assert (measures.finish().mean_norm, measures.finish().agreement) == (0.0, {})
