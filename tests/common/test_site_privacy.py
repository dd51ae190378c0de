"""The noise a site adds under a plan is a function of public figures, and keeps the plan's ε."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from lorica.common.accounting import PrivacyEvent, epsilon
from lorica.common.errors import Code
from lorica.common.plan import RunPlan
from lorica.common.site_privacy import evaluation_event, round_event, run_privacy

Refuses = Callable[[Code, Callable[[], object]], str]

PLAN = RunPlan().replace(
    privacy={"epsilon": 3.0},
    training={"expected_batch_size": 100, "local_steps": 4},
    rounds={"count": 15},
)


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


def test_training_and_evaluation_share_the_budget() -> None:
    privacy = run_privacy(EVALUATED, 1000)
    delta = EVALUATED.privacy.delta
    assert privacy.training.sample_rate == 100 / 800  # of those that are not set aside
    assert 0.99 * 2.25 < epsilon([privacy.training] * 4, 0.75 * delta) <= 2.25
    assert privacy.evaluation is not None and privacy.evaluation.sample_rate == 1.0
    assert 0.99 * 0.75 < epsilon([privacy.evaluation] * 2, 0.25 * delta) <= 0.75


def test_the_events_of_a_run_are_its_rounds_and_evaluations() -> None:
    privacy = run_privacy(EVALUATED, 1000)
    steps = {event.sample_rate: event.steps for event in privacy.events(4, 2)}
    assert steps == {0.125: 16, 1.0: 2}
    # one accountant over both never states more than the two budgets together
    assert epsilon(privacy.events(4, 2), EVALUATED.privacy.delta) <= 3.0
    assert [event.steps for event in run_privacy(PLAN, 1000).events(3, 0)] == [12]


def test_evaluation_noise_depends_on_the_plan_alone() -> None:
    expected = evaluation_event(EVALUATED)
    assert run_privacy(EVALUATED, 1000).evaluation == expected
    assert run_privacy(EVALUATED, 5000).evaluation == expected
    assert evaluation_event(PLAN) is None
    assert evaluation_event(EVALUATED.replace(privacy={"epsilon": math.inf})) == PrivacyEvent(
        0.0, 1.0, 1
    )


def test_units_set_aside_do_not_count_towards_a_batch(refuses: Refuses) -> None:
    run_privacy(EVALUATED, 125)
    detail = refuses(Code.DATA_TOO_FEW_RECORDS, lambda: run_privacy(EVALUATED, 124))
    assert "99 of them for training" in detail
