"""The noise a site adds under a plan is a function of public figures, and keeps the plan's ε."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from lorica.common.accounting import PrivacyEvent, epsilon
from lorica.common.errors import Code
from lorica.common.plan import RunPlan
from lorica.common.site_privacy import round_event

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
