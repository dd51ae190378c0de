"""Which model a site keeps: a question of chance, decided on units that are drawn together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lorica.client.benefit.guard import FEWEST_UNITS, SURE, Decision, ModelName, decide
from lorica.common.plan import RunPlan
from lorica.common.tasks import task_of
from tests.tasks import plan_of

TASK = task_of(RunPlan().replace(task={"labels": ["a", "b"]}))


def table(right: np.ndarray) -> torch.Tensor:
    """Judgements of records of the class 0 of which these are answered rightly."""
    found = torch.zeros(len(right), 3, dtype=torch.float64)
    found[:, 1] = torch.from_numpy(1.0 - right)
    return found


def decision(units: list[str] | None = None, **shares: float) -> Decision:
    """Of models that answer so many of 100 records rightly, the first ones."""
    found: dict[ModelName, torch.Tensor] = {
        name: table((np.arange(100) < 100 * share).astype(float))  # type: ignore[misc]
        for name, share in shares.items()
    }
    return decide(TASK, found, units or [str(row) for row in range(100)])


def test_another_model_is_kept_where_it_is_better_beyond_chance() -> None:
    found = decision(start=0.3, own=0.9, federated=0.5, tuned=0.8)
    assert found.kept == "own" and found.harmed
    assert found.models["own"].score == pytest.approx(0.9)
    assert found.models["own"].better == 1.0 and found.models["federated"].better == 0.0
    assert found.models["own"].low < 0.9 < found.models["own"].high
    assert decision(start=0.3, own=0.6, federated=0.5, tuned=0.8).kept == "tuned"
    assert not decision(start=0.3, own=0.6, federated=0.5, tuned=0.8).harmed
    assert "better than the federation's in 100%" in found.because


def test_a_difference_within_chance_keeps_the_federations() -> None:
    """One record of 100 more: in 63 % of draws it is drawn, 1 - (1 - 1/100)^100."""
    found = decision(start=0.3, own=0.51, federated=0.5, tuned=0.5)
    assert found.kept == "federated" and not found.harmed
    assert found.models["own"].better == pytest.approx(1 - 0.99**100, abs=0.08)
    assert found.models["own"].better < SURE


def test_records_of_a_unit_are_drawn_together() -> None:
    """All that is better lies in one patient's notes: he is in 65 % of draws of nine and more."""
    units = [f"{row // 10}" for row in range(100)]
    alone = decision(own=0.6, federated=0.5, start=0.1, tuned=0.5)
    together = decision(units, own=0.6, federated=0.5, start=0.1, tuned=0.5)
    assert alone.kept == "own" and together.kept == "federated"
    assert together.models["own"].better == pytest.approx(1 - 0.9**10, abs=0.08)


def test_few_units_decide_nothing() -> None:
    units = [f"{row % (FEWEST_UNITS - 1)}" for row in range(100)]
    found = decision(units, start=0.0, own=1.0, federated=0.0, tuned=0.0)
    assert found.kept == "federated" and "too few" in found.because


def test_a_number_is_compared_by_its_task(small_backbone: Path) -> None:
    """R² of two models, the better one kept."""
    task = task_of(plan_of("text-regression", small_backbone))
    true = torch.linspace(-1, 1, 40, dtype=torch.float64)
    near, far = true * 0.9, true * -0.5
    tables: dict[ModelName, torch.Tensor] = {
        "federated": torch.stack([(far - true) ** 2, far, true], 1),
        "own": torch.stack([(near - true) ** 2, near, true], 1),
    }
    found = decide(task, tables, [str(row) for row in range(40)])
    assert found.kept == "own" and found.headline == "r2"
    assert found.models["own"].score == pytest.approx(0.99)
