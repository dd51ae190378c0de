"""The four models of a site, made and judged on its own records."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lorica.client.benefit.aside import OwnRecords
from lorica.client.benefit.guard import DRAWS, NAMES, Decision, ModelName, decide
from lorica.client.benefit.tuning import Trains, tune
from lorica.common.adapter.state import State
from lorica.common.backbone.loading import Backbone
from lorica.common.cache.prefix import judgements
from lorica.common.cache.shelf import SHELF
from lorica.common.data.records import UNNAMED
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.tasks import task_of

_JUDGED = 0.2
"""Share of the records that are not set aside by which the best epoch is chosen."""


@dataclass(frozen=True)
class Benefit:
    """What taking part is worth to one site."""

    decision: Decision
    states: dict[ModelName, State]
    trained_on: int
    """Records that the site's own models were trained on."""
    unseen: bool
    """Whether the federation has not seen the records that models are compared on."""

    def content(self) -> dict[str, Any]:
        """For JSON: every model's figures, which is kept and why."""
        decision = self.decision
        return {
            "headline": decision.headline,
            "trained_on": self.trained_on,
            "units_aside": decision.units,
            "unseen_by_federation": self.unseen,
            "models": {
                name: {"what": NAMES[name], **asdict(judged)}
                for name, judged in decision.models.items()
            },
            "kept": decision.kept,
            "because": decision.because,
            "harmed": decision.harmed,
        }

    def json(self) -> str:
        """:meth:`content` as text."""
        return json.dumps(self.content(), indent=2, ensure_ascii=False) + "\n"


def compare_models(
    plan: RunPlan,
    backbone: Backbone,
    own: OwnRecords,
    federated: State,
    *,
    trains: Trains = "head",
    draws: int = DRAWS,
    seed: int = 0,
    steady: bool = False,
) -> Benefit:
    """Train a site's own models and judge all four on the records set aside.

    Args:
        plan: the run's.
        backbone: its backbone.
        own: the site's records, checked by the plan's task.
        federated: what the federation ended with; of a method with personal parts, this site's.
        trains: what the site's own training trains.
        draws, seed: of the guard's bootstrap; the seed also of the order of records.
        steady: as of :func:`~lorica.client.benefit.tuning.tune`.

    Raises:
        LoricaError: LOR-308 no record is set aside, or too few are left to train on.
    """
    task = task_of(plan.replace(training={"precision": "float32"}))
    aside, rest = np.flatnonzero(own.aside), np.flatnonzero(~own.aside)
    if not len(aside) or len(rest) < 2:
        raise LoricaError(
            Code.DATA_TOO_FEW_RECORDS,
            f"Of {len(own.records)} records {len(aside)} are set aside, too few to compare "
            "models on.",
            mend="Compare at a site with more records, or raise data.validation in the plan.",
        )
    model = task.model(backbone).eval()
    encoded = task.encode(backbone, own.records)
    targets = task.targets(own.records, encoded)
    cache = SHELF.get(model, encoded, backbone=backbone)
    units = _units(own, plan)
    rows, judged = _divided(rest, units, seed)
    states: dict[ModelName, State] = {"start": task.start(backbone), "federated": federated}
    for name, begin in (("own", "start"), ("tuned", "federated")):
        model.load_state(states[begin])  # type: ignore[index]
        tuned = tune(
            task, model, cache, targets, rows, judged, trains=trains, seed=seed, steady=steady
        )
        states[name] = tuned.state  # type: ignore[index]
    tables = {}
    for model_name in NAMES:
        model.load_state(states[model_name])
        tables[model_name] = judgements(task, model, cache, targets, aside)
    decision = decide(task, tables, [units[row] for row in aside], draws=draws, seed=seed)
    return Benefit(decision, states, len(rest), own.unseen)


def _units(own: OwnRecords, plan: RunPlan) -> list[str]:
    """Of every record; where units are records or unnamed, each its own."""
    return [
        f"{row}" if plan.privacy.unit == "record" or unit.startswith(UNNAMED) else f"unit {unit}"
        for row, unit in enumerate(own.records.units)
    ]


def _divided(rest: np.ndarray, units: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and rows that choose the epoch; a unit's rows stay together."""
    names = list(dict.fromkeys(units[row] for row in rest))
    order = np.random.default_rng(seed).permutation(len(names))
    judging = {names[at] for at in order[: max(1, round(_JUDGED * len(names)))]}
    mask = np.array([units[row] in judging for row in rest])
    return rest[~mask], rest[mask]
