"""The adapter that all sites begin with follows from rounds.seed, and nothing of a simulation's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorica.common.backbone.loading import load_backbone
from lorica.common.tasks import task_of
from tests.tasks import plan_of

KINDS = [
    "text-classification",
    "text-regression",
    "token-classification",
    "multi-label-classification",
]


@pytest.mark.parametrize("kind", KINDS)
def test_simulation_seed_decides_nothing_of_the_start_and_rounds_seed_all_of_it(
    small_backbone: Path, kind: str
) -> None:
    plan = plan_of(kind, small_backbone)
    backbone = load_backbone(plan.backbone)
    first = task_of(plan).start(backbone)
    simulated = plan.replace(simulation={"seed": 5, "noise": "secure"})
    again = task_of(simulated).start(backbone)
    assert all(torch.equal(again[name], first[name]) for name in first)
    other = plan.replace(rounds={"seed": 5})
    assert other.fingerprint != plan.fingerprint
    moved = task_of(other).start(backbone)
    assert any(not torch.equal(moved[name], first[name]) for name in first)
