"""What the coordinator makes of noised counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.common.plan import RunPlan
from lorica.common.privacy.of_plan import public_privacy
from lorica.common.tasks.classes import LOSS_BOUND
from lorica.common.tasks.noised_metrics import believable, combine, sensitivity, vector_length

LABELS = ["a", "b", "c"]
ALL = ["accuracy", "loss", "per_label"]
WANTED = [[], ["accuracy"], ["loss"], ["per_label"], ["accuracy", "loss"], ALL]


def plan_for(wanted: list[str], epsilon: float = math.inf) -> RunPlan:
    return RunPlan().replace(
        task={"labels": LABELS},
        privacy={"epsilon": epsilon, "evaluation_metrics": wanted},
        training={"lora": "never"},
        rounds={"count": 2, "evaluate_every": 1},
    )


def vector(wanted: list[str], labels: np.ndarray, hits: np.ndarray, losses: np.ndarray) -> list:
    """The exact vector of units with one record each."""
    values = [float(len(labels))]
    values += [float(hits.sum())] if "accuracy" in wanted else []
    values += [float(losses.sum() / LOSS_BOUND)] if "loss" in wanted else []
    if "per_label" in wanted:
        values += [float((labels == k).sum()) for k in range(3)]
        values += [float(hits[labels == k].sum()) for k in range(3)]
    return values


@pytest.mark.parametrize("wanted", WANTED, ids="+".join)
def test_exact_counts_of_several_sites_give_the_exact_metrics(wanted: list[str]) -> None:
    generator = np.random.default_rng(0)
    plan = plan_for(wanted)
    parts = []
    for size in (40, 7, 120):
        labels = generator.integers(0, 3, size)
        parts.append((labels, generator.random(size) < 0.7, generator.random(size) * LOSS_BOUND))
    vectors = [vector(wanted, *part) for part in parts]
    assert {len(values) for values in vectors} == {vector_length(plan)}
    labels, hits, losses = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    metrics = combine(plan, vectors)
    assert metrics is not None
    if {"accuracy", "per_label"} & set(wanted):
        assert metrics.accuracy == pytest.approx(hits.mean())
        assert metrics.accuracy_band == 0
    else:
        assert metrics.accuracy is None
    if "loss" in wanted:
        assert metrics.loss == pytest.approx(losses.mean())
    else:
        assert metrics.loss is None
    expected = {name: hits[labels == k].mean() for k, name in enumerate(LABELS)}
    assert metrics.per_label == (pytest.approx(expected) if "per_label" in wanted else {})


@settings(max_examples=100, deadline=None)
@given(
    wanted=st.sampled_from(WANTED),
    records=st.lists(
        st.tuples(st.integers(0, 2), st.booleans(), st.floats(0, LOSS_BOUND)), min_size=1
    ),
)
def test_one_units_mean_contribution_is_within_the_sensitivity(
    wanted: list[str], records: list[tuple[int, bool, float]]
) -> None:
    labels, hits, losses = (np.array(column) for column in zip(*records, strict=True))
    mean = np.array(vector(wanted, labels, hits, losses)) / len(records)
    assert np.linalg.norm(mean) <= sensitivity(plan_for(wanted)) * (1 + 1e-9)


@pytest.mark.parametrize("wanted", WANTED, ids="+".join)
def test_the_sensitivity_is_reached(wanted: list[str]) -> None:
    worst = vector(wanted, np.array([1]), np.array([True]), np.array([LOSS_BOUND]))
    assert np.linalg.norm(worst) == pytest.approx(sensitivity(plan_for(wanted)))


def test_a_count_that_the_noise_drowns_gives_no_metrics() -> None:
    plan = plan_for(["accuracy"], epsilon=1.0)
    event = public_privacy(plan).evaluation
    assert event is not None
    noise = event.noise_multiplier * sensitivity(plan)
    assert combine(plan, [[2.9 * noise, 1.0]]) is None
    assert combine(plan, [[3.1 * noise, 1.0]]) is not None
    assert combine(plan, [[0.0, 0.0]]) is None
    assert combine(plan, [[-5.0, 1.0]]) is None
    assert combine(plan, []) is None


def test_the_band_covers_the_noise_about_95_times_in_100() -> None:
    plan = plan_for(["accuracy"], epsilon=8.0)
    event = public_privacy(plan).evaluation
    assert event is not None
    noise = event.noise_multiplier * sensitivity(plan)
    generator = np.random.default_rng(1)
    exact = np.array([[2000 * noise, 1400 * noise]] * 3)  # three sites, accuracy 0.7
    inside = 0
    for _ in range(2000):
        metrics = combine(plan, (exact + generator.normal(0, noise, exact.shape)).tolist())
        assert metrics is not None and metrics.accuracy is not None
        inside += abs(metrics.accuracy - 0.7) <= (metrics.accuracy_band or 0)
    # Monte Carlo over 2000 draws: three standard errors are 0.015
    assert inside / 2000 == pytest.approx(0.95, abs=0.015)


def test_noise_never_gives_impossible_metrics() -> None:
    plan = plan_for(ALL)
    metrics = combine(plan, [[10.0, 12.0, -3.0, 5.0, -4.0, 0.5, 9.0, 1.0, -1.0]])
    assert metrics is not None
    assert (metrics.accuracy, metrics.loss) == (1.0, 0.0)
    assert metrics.per_label == {"a": 1.0, "b": 1.0, "c": 0.0}


@pytest.mark.parametrize("epsilon", [1.0, 8.0, math.inf])
def test_what_a_site_can_count_is_believed_and_what_nobody_has_is_not(epsilon: float) -> None:
    plan = plan_for(ALL, epsilon)
    event = public_privacy(plan).evaluation
    assert event is not None
    noise = event.noise_multiplier * sensitivity(plan)
    generator = np.random.default_rng(2)
    honest = np.array(vector(ALL, np.ones(500, int), np.ones(500, bool), np.full(500, LOSS_BOUND)))
    for _ in range(1000):
        assert believable(plan, honest + generator.normal(0, noise, honest.shape), 500)
        assert believable(plan, honest + generator.normal(0, noise, honest.shape), 0)
    for place in range(len(honest)):
        for absurd in (1e9, -1e9, math.inf, math.nan):
            counts = honest.copy()
            counts[place] = absurd
            assert not believable(plan, counts, 500)
