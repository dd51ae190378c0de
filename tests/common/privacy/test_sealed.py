"""Plans with sealed sums: what they may ask, their numbers, their three figures."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import ValidationError

from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.of_plan import public_privacy
from lorica.common.privacy.sealed import run_figures, shared_noise, sum_terms, training_grid
from lorica.common.privacy.shared_noise import SharedNoise

PLAN = RunPlan().replace(privacy={"trust": "sum", "honest_sites": 9})


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"privacy": {"trust": "none"}}, "honest_sites"),
        ({"privacy": {"honest_sites": 0}}, "at least 2"),
        ({"privacy": {"honest_sites": 1}}, "at least 2"),
        ({"training": {"mode": "local"}}, "gradient"),
        ({"rounds": {"fraction": 0.5}}, "rounds.fraction"),
        ({"rounds": {"over_provision": 0.2}}, "rounds.over_provision"),
        ({"wire": {"update": "int8"}}, "wire.update"),
    ],
)
def test_what_does_not_go_with_sums_is_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named.replace(".", r"\.")):
        PLAN.replace(**settings)


def test_honest_sites_are_the_fewest_that_make_a_round_unless_said() -> None:
    plan = PLAN.replace(privacy={"honest_sites": 0}, rounds={"minimum_sites": 5})
    assert plan.honest_sites == 5
    assert RunPlan().honest_sites == 1
    assert not plan.for_one_site().sealed


def test_the_numbers_follow_from_plan_and_sites() -> None:
    found = sum_terms(PLAN, 10)
    assert (found.threshold, found.colluders, found.dropouts) == (9, 0, 1)
    strict = PLAN.replace(privacy={"honest_sites": 7}, rounds={"minimum_sites": 9})
    found = sum_terms(strict, 10)
    assert (found.threshold, found.colluders, found.dropouts) == (9, 2, 1)
    assert shared_noise(strict) == shared_noise(strict, found) == SharedNoise(7, 9)
    with pytest.raises(LoricaError) as caught:
        sum_terms(PLAN, 8)  # nine honest of eight
    assert caught.value.code is Code.PLAN_BAD_VALUE


def test_the_plans_figure_keeps_its_budget_and_the_others_stand_on_either_side() -> None:
    strict = PLAN.replace(privacy={"honest_sites": 7}, rounds={"minimum_sites": 9})
    found = run_figures(strict)
    assert found.sums < found.colluding < strict.privacy.epsilon < found.alone
    assert found.colluding > 0.999 * strict.privacy.epsilon
    events = public_privacy(strict).events(strict.rounds.count, 0)
    assert found.colluding == epsilon(events, strict.privacy.delta)


def test_a_rounds_grid_has_the_plans_noise() -> None:
    event = public_privacy(PLAN).of_round(2)
    found = training_grid(PLAN, 2, 30_000, 10)
    clip = PLAN.privacy.clip_norm
    whole = math.sqrt(9 * found.variance) * found.step
    assert event.noise_multiplier * clip <= whole < 1.002 * event.noise_multiplier * clip
