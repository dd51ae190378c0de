"""Releases on frozen features, against autograd one record at a time and against the formula of
the guarantee."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lorica.client.mechanism.frozen_features import (
    Residuals,
    _norms,
    head_contributions,
    head_tensors,
    label_contributions,
    noised_sum,
)
from lorica.client.mechanism.noise import SeededNoise
from lorica.client.mechanism.units import Units, joined
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.tasks.text_classification import BIAS_INPUT

SILENT = PrivacyEvent(0.0, 1.0, 1)
LABELS, WIDTH = 4, 7


def cross_entropy_by(labels: torch.Tensor) -> Residuals:
    """softmax - onehot."""

    def residuals(outputs: torch.Tensor, places: np.ndarray) -> torch.Tensor:
        wanted = labels[torch.from_numpy(places)]
        return outputs.softmax(1) - torch.nn.functional.one_hot(wanted, outputs.shape[1])

    return residuals


def noise(*key: object) -> SeededNoise:
    return SeededNoise("frozen features", *key)


def made(
    seed: int, sizes: list[int], *, scale: float = 1.0, labels: int = LABELS, width: int = WIDTH
) -> tuple[torch.nn.Linear, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A random head, unit-norm features, labels and owners of units with so many records."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(sizes)
    head = torch.nn.Linear(width, labels)
    with torch.no_grad():
        head.weight.copy_(scale * torch.randn(labels, width, generator=generator))
        head.bias.copy_(scale * torch.randn(labels, generator=generator))
    features = torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1)
    drawn = torch.randint(0, labels, (count,), generator=generator)
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return head, features, drawn, owner


def clipped(gradient: torch.Tensor, bound: float) -> torch.Tensor:
    norm = float(gradient.norm())
    return gradient * min(1.0, bound / norm) if norm > 0 else gradient


def head_reference(
    head: torch.nn.Linear,
    features: torch.Tensor,
    labels: torch.Tensor,
    owner: torch.Tensor,
    bound: float,
) -> torch.Tensor:
    """Σ over units of the clipped mean of plain backward passes, one record each; (C, H + 1)."""
    exact = torch.nn.Linear(features.shape[1], head.out_features, dtype=torch.float64)
    with torch.no_grad():
        exact.weight.copy_(head.weight)
        exact.bias.copy_(head.bias)
    total = torch.zeros(head.out_features, features.shape[1] + 1, dtype=torch.float64)
    for unit in sorted(set(owner.tolist())):
        gradients = []
        for row in torch.nonzero(owner == unit).flatten().tolist():
            exact.zero_grad(set_to_none=True)
            logits = exact(features[row : row + 1].double())
            torch.nn.functional.cross_entropy(logits, labels[row : row + 1]).backward()
            assert exact.weight.grad is not None and exact.bias.grad is not None
            bias = BIAS_INPUT * exact.bias.grad[:, None]  # of b / BIAS_INPUT, by the chain rule
            gradients.append(torch.cat([exact.weight.grad, bias], dim=1))
        total += clipped(torch.stack(gradients).mean(0), bound)
    return total


def sums_reference(
    features: torch.Tensor, labels: torch.Tensor, owner: torch.Tensor
) -> torch.Tensor:
    """Σ over units of the clipped mean of a matrix with the feature in its label's row."""
    total = torch.zeros(LABELS, features.shape[1], dtype=torch.float64)
    for unit in sorted(set(owner.tolist())):
        rows = torch.nonzero(owner == unit).flatten().tolist()
        mean = torch.zeros_like(total)
        for row in rows:
            mean[labels[row]] += features[row].double() / len(rows)
        total += clipped(mean, 1.0)
    return total


def label_sums(
    features: torch.Tensor,
    labels: torch.Tensor,
    owner: torch.Tensor,
    count: int,
    event: PrivacyEvent,
    source: SeededNoise,
) -> torch.Tensor:
    """The release of label sums."""
    return noised_sum(label_contributions(features, labels, count), owner, event, source)


def gradient_of(
    head: torch.nn.Linear,
    features: torch.Tensor,
    labels: torch.Tensor,
    owner: torch.Tensor,
    bound: float,
    event: PrivacyEvent = SILENT,
    *key: object,
) -> torch.Tensor:
    """The release as one matrix (C, H + 1)."""
    given = head_contributions(head, features, cross_entropy_by(labels), bound)
    found = head_tensors(noised_sum(given, owner, event, noise(*key)))
    assert set(found) == {"head.weight", "head.bias"}
    assert all(t.dtype == torch.float32 and t.is_contiguous() for t in found.values())
    return torch.cat([found["head.weight"], found["head.bias"][:, None]], dim=1).double()


MIXTURES = [[1] * 12, [3] * 5, [1, 2, 3, 4, 1, 50, 2, 2], [50], [1]]


@pytest.mark.parametrize("bound", [1e-2, 0.4, 1.0, 100.0])
@pytest.mark.parametrize("sizes", MIXTURES, ids=str)
def test_the_heads_gradient_is_that_of_backward_passes_record_by_record(
    sizes: list[int], bound: float
) -> None:
    head, features, labels, owner = made(len(sizes), sizes, scale=2.0)
    expected = head_reference(head, features, labels, owner, bound)
    found = gradient_of(head, features, labels, owner, bound)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * bound)


@pytest.mark.parametrize("sizes", MIXTURES, ids=str)
def test_label_sums_are_those_of_every_record_on_its_own(sizes: list[int]) -> None:
    _, features, labels, owner = made(len(sizes), sizes)
    expected = sums_reference(features, labels, owner)
    found = label_sums(features, labels, owner, LABELS, SILENT, noise()).double()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_order_of_records_does_not_matter() -> None:
    """Units' records lie scattered among each other."""
    head, features, labels, owner = made(3, [4, 1, 7, 2])
    order = torch.randperm(len(owner), generator=torch.Generator().manual_seed(0))
    found = gradient_of(head, features[order], labels[order], owner[order], 0.3)
    torch.testing.assert_close(
        found, head_reference(head, features, labels, owner, 0.3), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_unit_with_a_value_that_is_not_finite_counts_as_zero(value: float) -> None:
    """The whole unit, and no other."""
    head, features, labels, owner = made(1, [2, 3, 1, 50])
    spoilt = features.clone()
    spoilt[3, 2] = value  # a record of the second unit
    others = owner != 1
    left = owner[others] - (owner[others] > 1).long()
    expected = head_reference(head, features[others], labels[others], left, 0.5)
    found = gradient_of(head, spoilt, labels, owner, 0.5)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    sums = label_sums(spoilt, labels, owner, LABELS, SILENT, noise()).double()
    reference = sums_reference(features[others], labels[others], left)
    torch.testing.assert_close(sums, reference, rtol=1e-6, atol=1e-6)


def test_a_head_of_huge_values_gives_finite_gradients() -> None:
    head, features, labels, owner = made(1, [2, 3, 1], scale=1e38)
    assert gradient_of(head, features, labels, owner, 1.0).isfinite().all()


@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_an_empty_draw_gives_noise_alone(sigma: float) -> None:
    """As the units give it: no unit was drawn."""
    rows, owner = joined(Units.of_records(5).draw(noise(), 0.0))
    assert len(rows) == len(owner) == 0
    assert rows.dtype == np.int64 and owner.dtype == torch.int64
    event = PrivacyEvent(sigma, 0.1, 1)
    head, *_ = made(0, [1])
    features, labels = torch.empty(0, WIDTH), torch.empty(0, dtype=torch.int64)
    found = gradient_of(head, features, labels, owner, 1.0, event)
    sums = label_sums(features, labels, owner, LABELS, event, noise())
    for release in (found, sums):
        assert release.isfinite().all()
        assert bool(release.any()) == (sigma > 0)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    own=st.sampled_from([1, 2, 7, 50]),
    scale=st.sampled_from([0.0, 0.1, 1.0, 16.0, 1e4]),
    bound=st.sampled_from([1e-3, 0.1, 1.0, 3.0]),
)
def test_one_unit_more_changes_the_sums_by_at_most_their_bound(
    seed: int, sizes: list[int], own: int, scale: float, bound: float
) -> None:
    """Neighbours: with and without the last unit, whatever the model and its records' number."""
    head, features, labels, owner = made(seed, [*sizes, own], scale=scale)
    rest = owner < len(sizes)
    with_it = gradient_of(head, features, labels, owner, bound)
    without = gradient_of(head, features[rest], labels[rest], owner[rest], bound)
    rounding = 1e-6 * bound * (len(sizes) + 1)  # of the release to float32
    assert float((with_it - without).norm()) <= bound + rounding
    more = label_sums(features, labels, owner, LABELS, SILENT, noise()).double()
    less = label_sums(features[rest], labels[rest], owner[rest], LABELS, SILENT, noise()).double()
    assert float((more - less).norm()) <= 1 + 1e-6 * (len(sizes) + 1)


def test_the_bound_is_reached() -> None:
    """So a smaller sensitivity would be wrong."""
    head, features, labels, owner = made(0, [1], scale=16.0)
    assert float(gradient_of(head, features, labels, owner, 0.1).norm()) == pytest.approx(0.1)
    sums = label_sums(features, labels, owner, LABELS, SILENT, noise())
    assert float(sums.norm()) == pytest.approx(1.0)


def test_features_that_are_too_long_are_cut() -> None:
    """Sums trust nobody that features have unit norm."""
    _, features, labels, owner = made(0, [1, 1])
    found = label_sums(1e6 * features, labels, owner, LABELS, SILENT, noise())
    torch.testing.assert_close(
        found.double(), sums_reference(features, labels, owner), rtol=1e-5, atol=1e-5
    )


def drawn_noise(sigma: float, bound: float, *key: object) -> tuple[np.ndarray, np.ndarray]:
    """What a gradient's and the sums' noise was, both standardised, over 40 × 90 values."""
    head, features, labels, owner = made(0, [1, 2], labels=40, width=89)
    event = PrivacyEvent(sigma, 1.0, 1)
    silent = gradient_of(head, features, labels, owner, bound)
    found = gradient_of(head, features, labels, owner, bound, event, *key)
    gradient = (found - silent) / (sigma * bound)
    still = label_sums(features, labels, owner, 40, SILENT, noise(*key))
    sums = (label_sums(features, labels, owner, 40, event, noise(*key)) - still) / sigma
    return gradient.numpy().ravel(), sums.double().numpy().ravel()


@pytest.mark.parametrize(("sigma", "bound"), [(0.5, 1.0), (20.0, 0.1), (3.0, 5.0)])
def test_noise_has_the_charged_deviation_in_every_coordinate(sigma: float, bound: float) -> None:
    """3600 values: Kolmogorov and Smirnov's test against N(0, (σΔ)²), and its deviation."""
    for values in drawn_noise(sigma, bound, "deviation"):
        assert stats.kstest(values, "norm").pvalue > 1e-3
        assert values.std() == pytest.approx(1.0, abs=4 / math.sqrt(2 * len(values)))


def test_noise_of_other_rounds_and_sites_is_independent() -> None:
    keys = [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    for kind in (0, 1):
        values = np.stack([drawn_noise(1.0, 1.0, *key)[kind] for key in keys])
        correlation = np.corrcoef(values) - np.eye(len(keys))
        assert np.abs(correlation).max() < 4.5 / math.sqrt(values.shape[1])


def cancelling(width: int, seed: int) -> tuple[torch.Tensor, torch.nn.Linear]:
    """A feature vector, and a head whose first output for it is 0 but for how it is rounded: large
    weights, the last of which take back, in exact arithmetic, what the others give."""
    generator = torch.Generator().manual_seed(seed)
    feature = torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)
    feature = feature[feature.abs().argsort()]
    weights = 1e36 * torch.randn(width, generator=generator)
    weights[-6:] = 0.0
    exact = [Fraction(float(value)) for value in feature]
    for place in range(width - 6, width):
        left = sum(Fraction(float(w)) * f for w, f in zip(weights, exact, strict=True))
        weights[place] = float(-left / exact[place])
    head = torch.nn.Linear(width, 2)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.weight[0] = weights
    return feature, head


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("width", [128, 384, 768])
def test_a_head_that_cancels_against_a_record_learns_nothing_from_where_it_stands(
    width: int, seed: int
) -> None:
    """A lying coordinator's attack: two hundred records alike, and one more before them. As odd and
    even rows of a product are rounded otherwise, half of the records would be of another class
    where the first is away; the sum would move by 42 times its bound."""
    feature, head = cancelling(width, seed)
    features = feature.repeat(201, 1)
    features[0] = torch.nn.functional.normalize(torch.ones(width), dim=0)
    labels = 1 - torch.arange(201) % 2
    whole = head_contributions(head, features, cross_entropy_by(labels), 1.0)
    without = head_contributions(head, features[1:], cross_entropy_by(labels[1:]), 1.0)
    assert torch.equal(whole.left[1:], without.left)
    sums = [
        noised_sum(given, torch.arange(len(given.left)), SILENT, noise())
        for given in (whole, without)
    ]
    assert float((sums[0] - sums[1]).norm()) <= 1.0 + 1e-5


@pytest.mark.parametrize(("width", "size"), [(384, 2), (768, 17), (129, 5)])
def test_the_norm_of_a_unit_of_several_records_is_the_same_in_every_place(
    width: int, size: int
) -> None:
    head, features, labels, owner = made(3, [size] * 21, labels=5, width=width)
    given = head_contributions(head, features, cross_entropy_by(labels), 1.0)
    sizes = torch.bincount(owner)
    wanted = _norms(given.left, given.right, owner, sizes)
    for away in range(21):
        kept = owner != away
        others = owner[kept] - (owner[kept] > away).long()
        found = _norms(given.left[kept], given.right[kept], others, torch.bincount(others))
        assert torch.equal(found, wanted[torch.arange(21) != away])
