"""The stages of a run: which come, in which order, what they train and what they need."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.common.plan import RunPlan
from lorica.common.plan.lora import lora_sentence, signal_of
from lorica.common.plan.stages import (
    Stage,
    clip_share,
    falling,
    place_in_stage,
    returned,
    schedule,
    sent,
    stage_of,
    total_steps,
    trained,
)
from lorica.common.privacy.accountant import calibrate_noise

LAYER = "base_model.model.encoder.layer.1.attention.self.query"
A, B = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
NAMES = [A, B, "head.weight", "head.bias", "head.center"]
SUMS, HEAD, LORA, LOCAL = Stage.CLASS_SUMS, Stage.HEAD, Stage.LORA, Stage.LOCAL


def plan_of(
    count: int, *, warm: float = 0.4, lora: int = 0, mode: str = "gradient", kind: str = "lora"
) -> RunPlan:
    """``lora`` rounds of LoRA, 0 for none."""
    training: dict[str, Any] = {"mode": mode, "lora": "always" if lora else "never"}
    return RunPlan().replace(
        adapter={"kind": kind},
        training=training | {"lora_rounds": max(1, lora), "local_steps": 3},
        rounds={"count": count, "warm_start": warm},
    )


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (plan_of(9), [(SUMS, 1), (HEAD, 8)]),
        (plan_of(9, warm=0), [(HEAD, 9)]),
        (plan_of(9, lora=3), [(SUMS, 1), (HEAD, 5), (LORA, 3)]),
        (plan_of(9, lora=3, kind="head"), [(SUMS, 1), (HEAD, 8)]),
        (plan_of(4, lora=3), [(SUMS, 1), (LORA, 3)]),
        (plan_of(3, lora=3, warm=0), [(LORA, 3)]),
        (plan_of(1), [(SUMS, 1)]),
        (plan_of(9, mode="local"), [(SUMS, 1), (LOCAL, 8)]),
        (plan_of(9, mode="local", warm=0, lora=3), [(LOCAL, 9)]),
        (plan_of(1, mode="local", warm=0), [(LOCAL, 1)]),
    ],
    ids=str,
)
def test_the_schedule_is_as_the_plan_says(plan: RunPlan, expected: list[tuple[Stage, int]]) -> None:
    assert schedule(plan) == expected
    flat = [stage for stage, rounds in expected for _ in range(rounds)]
    count = plan.rounds.count
    assert [stage_of(plan, round) for round in range(1, count + 1)] == flat
    assert stage_of(plan, 0) is flat[0]
    assert stage_of(plan, count + 1) is stage_of(plan, count + 99) is flat[-1]
    steps = {LOCAL: 3}
    assert total_steps(plan) == sum(steps.get(stage, 1) for stage in flat)


@settings(deadline=None)
@given(
    count=st.integers(1, 60),
    warm=st.sampled_from([0.0, 0.4]),
    lora=st.integers(0, 20),
    mode=st.sampled_from(["gradient", "local"]),
    kind=st.sampled_from(["lora", "head"]),
)
def test_places_count_every_stage_from_one(
    count: int, warm: float, lora: int, mode: str, kind: str
) -> None:
    count = max(count, lora + (warm > 0), 1)
    plan = plan_of(count, warm=warm, lora=lora, mode=mode, kind=kind)
    parts = schedule(plan)
    assert sum(rounds for _, rounds in parts) == count
    assert all(rounds >= 1 for _, rounds in parts)
    assert len({stage for stage, _ in parts}) == len(parts)
    places = [place_in_stage(plan, round) for round in range(1, count + 1)]
    assert places == [(n, rounds) for _, rounds in parts for n in range(1, rounds + 1)]
    for beyond in (count + 1, count + 1000):
        with pytest.raises(ValueError, match=str(beyond)):
            place_in_stage(plan, beyond)


@pytest.mark.parametrize("final", [0.1, 1.0])
def test_rates_fall_within_every_stage_anew(final: float) -> None:
    plan = plan_of(12, lora=4)
    found = [falling(plan, round, final) for round in range(1, 13)]
    expected = [1.0, *np.linspace(1, final, 7), *np.linspace(1, final, 4)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_lora_rounds_leave_the_warm_start_its_round_and_no_more() -> None:
    """Insisted on, they take what there is; decided on, at most six tenths of the run, and none
    where that is too few to gain by, unless so few were asked for."""
    for count, insisted in ((9, 8), (8, 7), (2, 1), (1, 0)):
        plan = RunPlan().replace(training={"lora": "always"}, rounds={"count": count})
        assert plan.lora_rounds == insisted
        assert plan.replace(rounds={"warm_start": 0}).lora_rounds == count
        assert schedule(plan)[0] == (SUMS, 1)
    for count, decided in ((200, 60), (100, 60), (43, 26), (10, 6), (8, 0), (2, 0), (1, 0)):
        plan = RunPlan().replace(privacy={"epsilon": "inf"}, rounds={"count": count})
        assert plan.lora_rounds == decided
        assert bool(decided) or "rounds are too few for LoRA" in lora_sentence(plan)
    assert plan.replace(rounds={"count": 5}, training={"lora_rounds": 2}).lora_rounds == 2
    for count, decided in ((34, 21), (33, 20), (30, 0)):
        noised = plan.replace(
            privacy={"epsilon": 8.0},
            rounds={"count": count, "expected_units": 10**6, "expected_sites": 1},
        )
        assert noised.lora_rounds == decided
    entities = plan.replace(task={"kind": "token-classification"}, rounds={"count": 70})
    assert entities.lora_rounds == 70


PUBLIC = [  # units, sites, ε, labels, whether LoRA is worth its noise
    (6920, 1, 8.0, 2, True),
    (6920, 1, 3.0, 2, True),
    (6920, 1, 1.0, 2, False),
    (6920, 10, 8.0, 2, False),
    (100_000, 10, 8.0, 2, True),
    (10_003, 1, 8.0, 77, False),
    (0, 0, 8.0, 2, False),
]


@pytest.mark.parametrize(("units", "sites", "epsilon", "labels", "worth"), PUBLIC)
def test_auto_decides_by_public_figures_and_says_why(
    units: int, sites: int, epsilon: float, labels: int, worth: bool
) -> None:
    plan = RunPlan().replace(
        task={"labels": [f"label {number}" for number in range(labels)]},
        privacy={"epsilon": epsilon},
        rounds={"expected_units": units, "expected_sites": sites},
    )
    assert bool(plan.lora_rounds) is worth
    assert ("60 of 100 rounds train" in lora_sentence(plan)) is worth
    if not worth:
        assert lora_sentence(plan).startswith("No round trains LoRA factors: ")
        assert plan.evaluation_rounds == [] and not plan.lora_on_trial
        asked = plan.replace(training={"lora": "never"})
        assert schedule(plan) == schedule(asked)
    elif not plan.data.judge:
        assert plan.evaluation_rounds == [40, 60, 80, 100]
        assert plan.replace(data={"judge": "judge.csv"}).evaluation_rounds == []


def test_a_lora_round_has_a_batch_that_is_worth_a_step() -> None:
    open_run = {"epsilon": "inf"}
    for privacy, units, rate in (
        ({}, 0, 0.1),
        (open_run, 0, 0.05),
        (open_run, 10_000, 0.05),
        (open_run, 640, 0.2),
        ({}, 100, 1.0),
    ):
        plan = RunPlan().replace(privacy=privacy, rounds={"expected_units": units})
        assert plan.lora_sample_rate == rate
        assert plan.replace(training={"lora_sample_rate": 0.3}).lora_sample_rate == 0.3


def test_where_nobody_would_judge_the_plan_says_what_it_lacks() -> None:
    said = lora_sentence(RunPlan())
    for key in ("rounds.expected_units", "rounds.evaluate_every", "data.judge", "always"):
        assert key in said
    for change in ({"rounds": {"evaluate_every": 5}}, {"data": {"judge": "judge.csv"}}):
        assert RunPlan().replace(**change).lora_rounds == 60


def test_the_signal_is_what_the_gaussian_mechanism_leaves() -> None:
    """μ against its exact value, by the mechanism's own curve: within a third, and in order."""
    found = []
    for epsilon in (0.5, 1.0, 3.0, 8.0):
        plan = RunPlan().replace(privacy={"epsilon": epsilon}, rounds={"expected_units": 1})
        exact = 1.0 / calibrate_noise(epsilon, plan.privacy.delta, 1.0, 1)
        found.append(signal_of(plan))
        assert found[-1] == pytest.approx(exact, rel=0.34)
    assert found == sorted(found)


@pytest.mark.parametrize("method", ["fedavg", "ffa", "fedsvd"])
def test_what_is_trained_is_that_of_the_stage_and_never_the_center(method: str) -> None:
    plan = plan_of(9, lora=3).replace(aggregation={"method": method})
    factors = [B] if method == "ffa" else [A, B]  # at one adapter "fedsvd" has no mean to correct
    head = ["head.weight", "head.bias"]
    assert trained(plan, 1, NAMES) == ["head.weight"]
    assert all(trained(plan, round, NAMES) == head for round in range(2, 7))
    assert all(trained(plan, round, NAMES) == [*factors, *head] for round in (7, 8, 9))
    local = plan.replace(training={"mode": "local"})
    factors = [A, B] if method == "fedavg" else [B]
    assert trained(local, 1, NAMES) == ["head.weight"]
    assert all(trained(local, round, NAMES) == [*factors, *head] for round in range(2, 10))


def test_only_the_head_is_sent_while_the_encoder_is_frozen() -> None:
    head = ["head.weight", "head.bias", "head.center"]
    for plan in (plan_of(9, lora=3), plan_of(9, mode="local")):
        for round in range(1, 10):
            stage = stage_of(plan, round)
            assert sent(plan, round, NAMES) == (head if stage in (SUMS, HEAD) else NAMES)
            assert stage.on_frozen_features == (stage in (SUMS, HEAD))


def test_what_sites_keep_for_themselves_is_trained_and_neither_sent_nor_returned() -> None:
    """But the head is sent: a site's own begins as it. The warm start's sums are everybody's."""
    plan = plan_of(3, mode="local").replace(aggregation={"method": "fedsa"})
    assert returned(plan, 1, NAMES) == ["head.weight"]
    for round in (2, 3):
        assert trained(plan, round, NAMES) == [A, B, "head.weight", "head.bias"]
        assert returned(plan, round, NAMES) == [A]
        assert sent(plan, round, NAMES) == [name for name in NAMES if name != B]
    shared = plan_of(9, lora=3)
    for round in range(1, 10):
        assert returned(shared, round, NAMES) == trained(shared, round, NAMES)


@pytest.mark.parametrize(
    ("lora", "epsilon", "every", "expected"),
    [
        ("never", 8.0, 1, 0),
        ("never", "inf", 0, 0),
        ("always", 8.0, 0, 3),
        ("auto", "inf", 0, 3),
        ("auto", 8.0, 0, 0),
        ("auto", 8.0, 4, 3),
    ],
)
def test_lora_rounds_come_where_they_pay(
    lora: str, epsilon: float | str, every: int, expected: int
) -> None:
    plan = RunPlan().replace(
        privacy={"epsilon": epsilon},
        training={"lora": lora, "lora_rounds": 3},
        rounds={"count": 20, "evaluate_every": every},
    )
    assert plan.lora_rounds == dict(schedule(plan)).get(LORA, 0) == expected
    for changed in (
        plan.replace(adapter={"kind": "head"}),
        plan.replace(training={"mode": "local"}),
    ):
        assert changed.lora_rounds == dict(schedule(changed)).get(LORA, 0) == 0
    if every and expected:  # what the factors are judged by: right before them, and after
        assert {17, 20} <= set(plan.evaluation_rounds)
    assert all(a < b for a, b in itertools.pairwise(plan.evaluation_rounds))


def test_the_clip_norm_is_shared_by_the_plan_or_by_what_the_task_asks() -> None:
    entities = {"kind": "token-classification", "labels": ["drug"]}
    for change, share in (
        ({}, 0.5),
        ({"task": entities}, 0.9),
        ({"task": entities, "privacy": {"epsilon": "inf"}}, 0.5),
        ({"task": entities, "training": {"gradient_clip_share": 0.3}}, 0.3),
        ({"task": {"kind": "masked-lm"}, "data": {"label": ""}}, 0.5),
        ({"training": {"mode": "local"}}, 0.1),
    ):
        assert clip_share(RunPlan().replace(**change)) == share
