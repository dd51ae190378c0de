"""Every task in whole runs of three sites: it learns, keeps its budget, under every method."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lorica.common.backbone.loading import load_backbone
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import METHODS
from lorica.common.plan.traits import TRAITS
from lorica.common.saved.predict import Predictor
from lorica.common.tasks import task_of
from lorica.common.tasks.run_data import load_data
from lorica.server.results.folder import RunFolder
from lorica.server.results.observers import Silent
from lorica.server.rounds.loop import RoundLoop
from lorica.simulations.run.engines import run_in_process
from lorica.simulations.run.simulate import Simulation
from lorica.simulations.run.sites import make_trainers
from tests.conftest import make_small_backbone
from tests.tasks import KINDS, example, plan_of, rows_of, write_backbone, write_data

SITES = 3
CHANCE = {
    "text-classification": 0.5,
    "text-table-classification": 0.5,
    "image-table-classification": 0.5,
    "multi-label-classification": 0.5,
    "text-regression": 0.0,
    "token-classification": 0.0,
}
"""Score without knowledge: a fair coin, the mean, no entity; of text and table, or image and
table, with one of the two alone."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small backbone of tests/conftest.py and 240 records of every task."""
    made = tmp_path_factory.mktemp("tasks")
    make_small_backbone(made / "backbone")
    for kind in KINDS:
        write_data(made, kind, rows_of(kind, 240))
    return made


def planned(folder: Path, kind: str, **sections: Any) -> RunPlan:
    data = folder / (kind if TRAITS[kind].images else f"{kind}.jsonl")
    backbone = write_backbone(folder / "images", kind, folder / "backbone")
    return plan_of(kind, backbone, data).replace(**sections)


def simulated(plan: RunPlan, out: Path) -> dict[str, Any]:
    return Simulation(plan, out, Console(file=io.StringIO(), width=100)).run(report=False)


TABLES = pytest.mark.slow("a head with a table: 10 seconds a run")


@pytest.mark.parametrize("mode", ["local", "gradient"])
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[TABLES] * ("table" in kind)) for kind in KINDS]
)
def test_a_task_is_learnt_without_privacy(
    folder: Path, tmp_path: Path, kind: str, mode: str
) -> None:
    """Loss falls; the headline metric beats knowing nothing by a fifth."""
    local = {"local_steps": 8, "learning_rate": 0.02, "head_learning_rate": 0.1}
    plan = planned(
        folder,
        kind,
        privacy={"epsilon": float("inf")},
        training={"mode": mode, "expected_batch_size": 24, **local},
        # Random features of images are soon undone by steps that suit a trained encoder.
        server={"lora_rate": 0.001 if TRAITS[kind].images else 0.005},
        rounds={"count": 4 if mode == "local" else 20},
    )
    summary = simulated(plan, tmp_path / "run")
    rounds = RunFolder(tmp_path / "run").rounds()
    assert rounds[-1].metrics["loss"] < 0.7 * rounds[0].metrics["loss"]
    assert summary["score"] == rounds[-1].score is not None
    assert summary["score"] > CHANCE[kind] + 0.2, rounds[-1].metrics
    given, _ = example(kind, plan, tmp_path)
    (answer,) = Predictor(tmp_path / "run" / "adapter")([given])
    assert answer.shown


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_runs_at_epsilon_8_with_evaluation_at_the_sites(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    metrics = list(TRAITS[kind].site_metrics)
    plan = planned(
        folder,
        kind,
        privacy={"epsilon": 8.0, "evaluation_metrics": metrics, "evaluation_share": 0.4},
        training={"mode": "local", "expected_batch_size": 24, "local_steps": 2},
        data={"validation": 0.5},
        rounds={"count": 2, "evaluate_every": 2},
    )
    summary = simulated(plan, tmp_path / "run")
    last = RunFolder(tmp_path / "run").rounds()[-1]
    assert [site.status for site in last.sites] == ["ok"] * SITES, last.sites
    assert all(spent <= 8.0 for spent in summary["epsilon"].values())
    assert last.site_metrics.get("loss", 0.0) >= 0.0 and last.site_metrics
    assert last.site_score is not None  # the noise does not drown the count
    json.dumps(summary)


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_takes_every_task(folder: Path, tmp_path: Path, kind: str, method: str) -> None:
    """One private round of local steps: all sites take part, and head and LoRA factors move."""
    plan = planned(
        folder,
        kind,
        aggregation={"method": method},
        training={"mode": "local", "expected_batch_size": 8, "local_steps": 2},
        rounds={"count": 1, "warm_start": 0},
    )
    backbone, task = load_backbone(plan.backbone), task_of(plan)
    trainers = make_trainers(load_data(plan).train, plan)
    run = RunFolder(tmp_path / "run")
    run.create(plan)
    start = task.start(backbone)
    state = run_in_process(
        lambda grid: RoundLoop(
            grid,
            plan,
            run,
            run="r",
            start=lambda: start,
            evaluate=None,
            observer=Silent(),
            nodes=SITES,
        ).run(),
        trainers,
    )
    (record,) = run.rounds()[1:]
    assert [site.status for site in record.sites] == ["ok"] * SITES, record.sites
    moved = {name for name, tensor in state.items() if not tensor.equal(start[name])}
    if method == "fedsa":  # shares A alone; B and the head stay at the sites
        assert moved and all(".lora_A." in name for name in moved)
        return
    assert "head.weight" in moved
    assert any(".residual" in name or ".lora_B." in name for name in moved)
