"""The noise a site adds under a plan is a function of public figures, and keeps the plan's ε."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from lorica.common.errors import Code
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import Stage
from lorica.common.privacy.accountant import calibrate_noise, epsilon
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.of_plan import public_privacy, run_privacy

Refuses = Callable[[Code, Callable[[], object]], str]

PLAN = RunPlan().replace(
    privacy={"epsilon": 3.0},
    training={"mode": "local", "expected_batch_size": 100, "local_steps": 4},
    rounds={"count": 15, "warm_start": 0},
)


def round_event(plan: RunPlan, units: int) -> PrivacyEvent:
    """What one round costs in a plan of local steps alone."""
    return run_privacy(plan, units).of_round(1)


def test_all_rounds_together_keep_the_plans_epsilon() -> None:
    event = round_event(PLAN, 1000)
    assert (event.sample_rate, event.steps) == (0.1, 4)
    assert 0.99 * 3.0 < epsilon([event] * 15, PLAN.privacy.delta) <= 3.0
    assert epsilon([event] * 16, PLAN.privacy.delta) > 3.0


def test_a_site_no_larger_than_a_batch_uses_all_records_in_every_step() -> None:
    assert round_event(PLAN, 100).sample_rate == 1.0


def test_a_site_smaller_than_a_batch_is_refused(refuses: Refuses) -> None:
    detail = refuses(Code.DATA_TOO_FEW_RECORDS, lambda: round_event(PLAN, 99))
    assert "99" in detail and "100" in detail


@pytest.mark.parametrize("records", [1000, 1001])
def test_a_delta_of_one_record_or_more_is_refused(records: int, refuses: Refuses) -> None:
    plan = PLAN.replace(privacy={"delta": 1e-3})
    assert "0.001" in refuses(Code.PRIVACY_DELTA, lambda: round_event(plan, records))
    assert round_event(plan, 999).noise_multiplier > 0


def test_without_privacy_there_is_no_noise_and_delta_does_not_matter() -> None:
    plan = PLAN.replace(privacy={"epsilon": math.inf, "delta": 0.5})
    assert round_event(plan, 1000) == PrivacyEvent(0.0, 0.1, 4)


EVALUATED = PLAN.replace(
    rounds={"count": 4, "evaluate_every": 2},
    privacy={"evaluation_share": 0.25},
    data={"validation": 0.2},
)


def precision(event: PrivacyEvent, times: int) -> float:
    """Σ 1/σ² of an event that uses all units, so many times: what a budget is divided by."""
    assert event.sample_rate == 1.0
    return times / event.noise_multiplier**2


def whole_precision(plan: RunPlan) -> float:
    """1/σ² of the one Gaussian mechanism that spends the whole budget."""
    return calibrate_noise(plan.privacy.epsilon, plan.privacy.delta, 1.0, 1) ** -2


def test_training_and_evaluation_share_the_budget() -> None:
    privacy = run_privacy(EVALUATED, 1000)
    delta = EVALUATED.privacy.delta
    assert privacy.training.sample_rate == 100 / 800  # of those that are not set aside
    assert privacy.evaluation is not None and privacy.evaluation.sample_rate == 1.0
    assert precision(privacy.evaluation, 2) == pytest.approx(0.25 * whole_precision(EVALUATED))
    together = [privacy.training] * 4 + [privacy.evaluation] * 2
    assert 0.99 * 3.0 < epsilon(together, delta) <= 3.0
    assert epsilon([privacy.training] * 4, delta) < 3.0


GRADIENT = RunPlan().replace(
    privacy={"epsilon": 3.0, "delta": 1e-5, "evaluation_share": 0.2},
    training={"lora": "always", "lora_rounds": 3},
    rounds={"count": 10, "warm_start": 0.4, "lora_share": 0.25, "evaluate_every": 10},
)


@pytest.mark.parametrize("head_rate", [1.0, 0.3])
def test_every_stage_has_its_share_and_all_together_the_budget(head_rate: float) -> None:
    plan = GRADIENT.replace(training={"sample_rate": head_rate, "lora_sample_rate": 1.0})
    privacy = run_privacy(plan, 5000)
    one = dict(privacy.stages)
    assert {stage: event.sample_rate for stage, event in privacy.stages} == {
        Stage.CLASS_SUMS: 1.0,
        Stage.HEAD: head_rate,
        Stage.LORA: 1.0,
    }
    assert privacy.evaluation is not None
    evaluations = len(plan.evaluation_rounds)
    shares = {
        "evaluation": precision(privacy.evaluation, evaluations),
        "sums": precision(one[Stage.CLASS_SUMS], 1),
        "lora": precision(one[Stage.LORA], 3),
        "head": 6 * (head_rate / one[Stage.HEAD].noise_multiplier) ** 2,
    }
    total = sum(shares.values())
    found = {part: share / total for part, share in shares.items()}
    assert found == pytest.approx(
        {"evaluation": 0.2, "sums": 0.8 * 0.05, "lora": 0.76 * 0.25, "head": 0.76 * 0.75}
    )
    if head_rate == 1.0:
        assert total == pytest.approx(whole_precision(plan), rel=1e-3)
    spent = epsilon(privacy.events(10, evaluations), plan.privacy.delta)
    assert 0.99 * 3.0 < spent <= 3.0


def test_in_gradient_mode_all_sites_add_the_same_noise() -> None:
    plan = GRADIENT.replace(training={"sample_rate": 0.5})
    for units in (1, 50, 10**4):
        assert run_privacy(plan, units) == public_privacy(plan)


def test_a_site_that_joins_late_pays_for_the_rounds_it_took_part_in() -> None:
    """Round 1 sums, 2 to 7 head, 8 to 10 LoRA: other rounds cost other σ and q."""
    privacy = run_privacy(GRADIENT, 5000)
    found = {stage: event.steps for stage, event in privacy.events_by_stage([6, 7, 8, 9, 10])}
    assert found == {Stage.HEAD: 2, Stage.LORA: 3}
    assert privacy.events_by_stage(10) == privacy.events_by_stage(range(1, 11))
    delta = GRADIENT.privacy.delta
    late, early = (privacy.events(numbers, 0) for numbers in (range(6, 11), range(1, 6)))
    by_hand = [privacy.of_round(round) for round in range(6, 11)]
    assert epsilon(late, delta) == epsilon(by_hand, delta)
    assert epsilon(late, delta) != epsilon(early, delta)
    assert privacy.events_by_stage([]) == []


def test_local_steps_have_what_the_warm_start_leaves() -> None:
    plan = PLAN.replace(rounds={"warm_start": 0.4})
    privacy = run_privacy(plan, 1000)
    assert precision(privacy.of_round(1), 1) == pytest.approx(0.4 * whole_precision(plan))
    spent = [epsilon(privacy.events(rounds, 0), plan.privacy.delta) for rounds in (1, 2, 14, 15)]
    assert spent == sorted(set(spent))
    assert 0.99 * 3.0 < spent[-1] <= 3.0
    assert public_privacy(plan).of_round(1) == privacy.of_round(1)


def test_the_events_of_a_run_are_its_rounds_and_evaluations() -> None:
    privacy = run_privacy(EVALUATED, 1000)
    steps = {event.sample_rate: event.steps for event in privacy.events(4, 2)}
    assert steps == {0.125: 16, 1.0: 2}
    # one accountant over both never states more than the two budgets together
    assert epsilon(privacy.events(4, 2), EVALUATED.privacy.delta) <= 3.0
    assert [event.steps for event in run_privacy(PLAN, 1000).events(3, 0)] == [12]


def test_evaluation_noise_depends_on_the_plan_alone() -> None:
    expected = public_privacy(EVALUATED).evaluation
    assert expected is not None
    assert run_privacy(EVALUATED, 1000).evaluation == expected
    assert run_privacy(EVALUATED, 5000).evaluation == expected
    assert public_privacy(PLAN).evaluation is None
    without = EVALUATED.replace(privacy={"epsilon": math.inf})
    assert public_privacy(without).evaluation == PrivacyEvent(0.0, 1.0, 1)


def test_units_set_aside_do_not_count_towards_a_batch(refuses: Refuses) -> None:
    run_privacy(EVALUATED, 125)
    detail = refuses(Code.DATA_TOO_FEW_RECORDS, lambda: run_privacy(EVALUATED, 124))
    assert "99 of them for training" in detail
