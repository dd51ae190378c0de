"""Which model a site keeps: the federation's, unless another is better beyond chance there.

A model is *better beyond chance* where its headline metric is above the federation's in at least
``SURE`` of bootstrap draws of the units set aside, both judged on the same draw. With few units
nothing is: then the federation's is kept, which saw more records than this site has. Of those that
are better beyond chance the one with the highest metric is kept.

The decision depends on records, so it stays where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from lorica.common.tasks.base import Task

ModelName = Literal["start", "own", "federated", "tuned"]

NAMES: dict[ModelName, str] = {
    "start": "untrained start",
    "own": "own records alone",
    "federated": "the federation's",
    "tuned": "the federation's, tuned on own records",
}
"""Every model in words."""

SURE = 0.95
DRAWS = 400
FEWEST_UNITS = 10
"""Set aside, below which a comparison decides nothing."""


@dataclass(frozen=True)
class Judged:
    """One model on the records set aside."""

    score: float
    """By the task's headline metric."""
    low: float
    high: float
    """95 % of the bootstrap draws lie between them."""
    better: float
    """Share of draws in which it is better than the federation's; 0 for that one."""
    metrics: dict[str, float]


@dataclass(frozen=True)
class Decision:
    """All models side by side, and which is kept."""

    headline: str
    units: int
    """Set aside."""
    models: dict[ModelName, Judged]
    kept: ModelName

    @property
    def harmed(self) -> bool:
        """Whether the federation's model is worse here than one without the others' records."""
        return self.kept in ("start", "own")

    @property
    def because(self) -> str:
        """The decision in a sentence."""
        if self.kept != "federated":
            share = self.models[self.kept].better
            return (
                f"better than the federation's in {share:.0%} of draws of {self.units} units set "
                "aside"
            )
        if self.units < FEWEST_UNITS:
            return f"{self.units} units are set aside, too few to decide against it"
        return f"no other is better in {SURE:.0%} of draws of {self.units} units set aside"


def decide(
    task: Task,
    tables: Mapping[ModelName, torch.Tensor],
    units: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Decision:
    """Compare models by their judgements of the same records.

    Args:
        task: makes metrics of judgements.
        tables: model -> its judgements (n, S), n >= 1; "federated" is among them.
        units: of every record.
        draws: of the bootstrap.
        seed: of the draws.
    """
    rows_of: dict[str, list[int]] = {}
    for row, unit in enumerate(units):
        rows_of.setdefault(unit, []).append(row)
    members = [np.array(rows) for rows in rows_of.values()]
    draw = np.random.default_rng(seed)
    scores: dict[ModelName, list[float]] = {name: [] for name in tables}
    for _ in range(draws):
        picked = draw.integers(0, len(members), len(members))
        rows = torch.from_numpy(np.concatenate([members[unit] for unit in picked]))
        for name, table in tables.items():
            scores[name].append(task.metrics(table[rows]).score)
    ours = np.array(scores["federated"])
    models: dict[ModelName, Judged] = {}
    for name, table in tables.items():
        drawn = np.array(scores[name])
        low, high = np.quantile(drawn, [0.025, 0.975]) if draws else (np.nan, np.nan)
        whole = task.metrics(table)
        better = float((drawn > ours).mean()) if draws else 0.0
        models[name] = Judged(whole.score, float(low), float(high), better, dict(whole.values))
    kept: ModelName = "federated"
    if len(members) >= FEWEST_UNITS:
        able = [
            name
            for name, model in models.items()
            if model.better >= SURE and model.score > models["federated"].score
        ]
        kept = max(able, key=lambda name: models[name].score, default="federated")
    return Decision(task.headline, len(members), models, kept)
