"""Crafted adapters and heads: one record changes a site's sum by no more than is claimed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from lorica.client.mechanism import dp_sgd
from lorica.common.backbone.loading import load_backbone
from lorica.common.cache import batching
from lorica.common.cache.batching import Batch
from lorica.common.plan import RunPlan
from lorica.common.tasks import inputs
from lorica.simulations.audit.attacks.adapter import (
    ATTACKS,
    TOLERANCE,
    Attack,
    adapter_audit,
    largest_change,
)

WORDS = ["card", "cash", "fever", "pain", "heart", "skin", "cough", "lost", "new", "money", "my"]


def texts() -> list[str]:
    generator = random.Random(3)
    return [" ".join(generator.choices(WORDS, k=2 + row % 9)) for row in range(40)]


@pytest.fixture
def plan(small_backbone: Path) -> RunPlan:
    return RunPlan().replace(
        backbone={"source": str(small_backbone)},
        task={"labels": ["health", "money"]},
        training={"precision": "float32", "max_length": 60},
        privacy={"clip_norm": 0.5},
    )


def old_batches(
    drawn: Sequence[np.ndarray], sizes: np.ndarray, limit: int, budget: int = batching.TOKEN_BUDGET
) -> Iterator[Batch]:
    """Units sorted by length and cut at the budget; any number of rows."""
    order = sorted(range(len(drawn)), key=lambda unit: -int(sizes[drawn[unit], 0].max()))
    while order:
        size = max(1, budget // int(sizes[drawn[order[0]], 0].max()))
        units, order = [drawn[unit] for unit in order[:size]], order[size:]
        counts = [len(rows) for rows in units]
        turns = np.concatenate([np.arange(count) for count in counts])
        yield Batch(np.concatenate(units), np.repeat(np.arange(len(units)), counts), turns)


@pytest.fixture
def batches_of_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts padded to the longest of their batch, whoever that is."""
    monkeypatch.setattr(batching, "unit_batches", old_batches)
    monkeypatch.setattr(dp_sgd, "unit_batches", old_batches)
    monkeypatch.setattr(inputs, "padded", lambda size, limit=0: size)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_one_record_changes_the_sum_by_no_more_than_the_clip_norm(
    plan: RunPlan, attack: Attack
) -> None:
    """Neighbouring data sets through the real session; the sum before noise, in float64."""
    found = largest_change(attack, plan, load_backbone(plan.backbone), texts())
    assert 0 < found <= 1 + TOLERANCE


def test_the_old_batches_fail_the_audit(plan: RunPlan, batches_of_old: None) -> None:
    """So the attacks see what they are for: with padding by neighbours, rounding reaches them."""
    finding, (check,) = adapter_audit(plan, load_backbone(plan.backbone), texts(), seed=0)
    assert not check.passed
    changes = finding.details["largest_change"]
    assert max(changes.values()) > 3, changes
    assert sum(change > 1 + TOLERANCE for change in changes.values()) >= 3, changes
