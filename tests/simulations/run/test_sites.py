"""What virtual sites declare."""

from __future__ import annotations

import math

import pytest

from lorica.common.data.records import Records
from lorica.common.plan import RunPlan
from lorica.simulations.run.sites import make_trainer


def records(count: int) -> Records:
    names = [str(row) for row in range(count)]
    return Records(names, ["a"] * count, names, [""] * count)


@pytest.mark.parametrize("count", [1, 2, 3, 8, 45, 46, 90, 127, 1001])
def test_a_rounded_figure_is_below_the_true_one_by_less_than_root_two(count: int) -> None:
    plan = RunPlan().replace(simulation={"declared": "rounded"})
    declared = make_trainer("north", records(count), plan).sampling_units(plan)
    assert count / math.sqrt(2) - 1 < declared <= count
    powers = {math.floor(2 ** (power / 2)) for power in range(40)}
    assert declared in powers


def test_sites_declare_their_true_figure_unless_the_plan_says_otherwise() -> None:
    plan = RunPlan()
    assert make_trainer("north", records(46), plan).sampling_units(plan) == 46
