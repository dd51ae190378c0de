"""What is said of a run is what its rounds trained."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lorica.common.plan import RunPlan
from lorica.common.saved.trained import adapting_rounds, trained_summary, what_is_trained

OPEN = {"privacy": {"epsilon": math.inf}}
CASES: list[tuple[dict[str, Any], int | None, int, str]] = [
    ({}, None, 0, "a task head alone"),  # nobody would judge: auto trains none
    (
        OPEN,
        None,
        60,
        "LoRA factors of rank 8 on attention projections of all layers (in 60 rounds)",
    ),
    (OPEN, 60, 20, "(in 20 rounds), and a task head"),
    (OPEN, 40, 0, "a task head alone"),  # given up
    ({"adapter": {"kind": "head"}}, None, 0, "a task head alone"),
    (
        OPEN | {"adapter": {"kind": "bitfit", "layers": [-1]}},
        None,
        60,
        "biases of linear modules of layers -1",
    ),
    ({"training": {"mode": "local"}}, None, 99, "(in 99 rounds)"),
    (
        {"task": {"kind": "masked-lm"}, "data": {"label": ""}},
        None,
        100,
        "of all layers (in 100 rounds)",
    ),
]


@pytest.mark.parametrize(("changes", "kept", "rounds", "says"), CASES, ids=str)
def test_the_trained_part_is_told_with_its_rounds(
    changes: dict[str, Any], kept: int | None, rounds: int, says: str
) -> None:
    plan = RunPlan().replace(**changes)
    assert adapting_rounds(plan, kept) == rounds
    found = what_is_trained(plan, kept)
    assert says in found
    assert ("LoRA" in found or "biases" in found) is (rounds > 0)
    assert (plan.task.kind == "masked-lm") is ("head" not in found)


def test_the_summary_has_what_was_tried_and_kept() -> None:
    found = trained_summary(RunPlan().replace(**OPEN), 60, {40: 0.8, 60: 0.9, 80: 0.7, 100: 0.7})
    assert found["kept_round"] == 60 and found["adapting_rounds"] == 20
    assert found["judged"] == {"40": 0.8, "60": 0.9, "80": 0.7, "100": 0.7}
    assert found["judged_by"] == "the sites' noised counts"
    assert "60 of 100 rounds train LoRA factors" in found["decision"]
    silent = trained_summary(RunPlan(), None, {})
    assert silent["judged_by"] == "" and silent["kept_round"] == 100
