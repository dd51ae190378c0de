"""Guards in a simulation: one site whose labels mean something else, among five."""

from __future__ import annotations

import csv
import html
import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lorica.common.plan import RunPlan
from lorica.server.results.kept_own import KeptOwn
from lorica.simulations.reports.benefit import benefit_rows, benefit_sentence, benefit_table
from lorica.simulations.run.simulate import Simulation
from tests.conftest import make_small_backbone
from tests.tasks import HEALTH, MONEY

SITES, ALIEN = 5, "site 5"
OTHER = {"money": "health", "health": "money"}


def make_plan(folder: Path, **sections: Any) -> RunPlan:
    """Five sites with the same two labels; at the last they are exchanged."""
    draw, rows = random.Random(0), []
    for row in range(600):
        label, words = [("money", MONEY), ("health", HEALTH)][row % 2]
        site = f"site {1 + row // 2 % SITES}"
        text = f"{' '.join(draw.choices(words, k=4))} {row}"
        rows.append([text, OTHER[label] if site == ALIEN else label, site])
    for name, part in (("train.csv", rows[:500]), ("test.csv", rows[500:])):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([["text", "label", "place"], *part])
    plan = RunPlan().replace(
        backbone={"source": str(make_small_backbone(folder / "backbone"))},
        data={
            "train": str(folder / "train.csv"),
            "test": str(folder / "test.csv"),
            "validation": 0.3,
        },
        privacy={"epsilon": 20.0, "delta": 1e-3, "benefit_epsilon": 8.0},
        training={"lora": "never"},
        rounds={"count": 8, "evaluate_every": 8},
        simulation={
            "sites": SITES,
            "partition": "by-column",
            "column": "place",
            "baselines": "own",
            "workers": 1,
        },
    )
    return plan.replace(**sections)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("benefit")
    simulation = Simulation(make_plan(folder), folder / "out", Console(file=io.StringIO()))
    return simulation.run(), folder / "out"


def test_the_guard_keeps_the_alien_sites_own_model_and_the_federations_elsewhere(
    finished: tuple[dict[str, Any], Path],
) -> None:
    """What the others keep is at most a point worse than the federation's, on test data."""
    summary, out = finished
    assert json.loads((out / "summary.json").read_text())["benefit"] == summary["benefit"]
    rows = {row.site: row for row in benefit_rows(summary)}
    assert set(rows) == {f"site {number}" for number in range(1, SITES + 1)}
    assert rows[ALIEN].harmed or summary["benefit"][ALIEN]["kept"] == "tuned"
    assert rows[ALIEN].scores["own"] > 0.8 > 0.5 > rows[ALIEN].scores["federated"]
    for site, row in rows.items():
        if site != ALIEN:
            assert not row.harmed and row.change >= -0.01
            assert summary["benefit"][site]["unseen_by_federation"]


def test_the_report_says_it(finished: tuple[dict[str, Any], Path]) -> None:
    summary, out = finished
    page = html.unescape((out / "report.html").read_text())
    said = benefit_sentence(summary)
    assert "Did joining help each site?" in page
    assert "on records they set aside" in said and said.split(".")[0] in page
    console = Console(file=io.StringIO(), width=120)
    console.print(benefit_table(summary))
    assert ALIEN in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_sites_bits_say_at_how_many(finished: tuple[dict[str, Any], Path]) -> None:
    """At ε = 8 a bit is the truth in 2,999 of 3,000 cases."""
    summary, out = finished
    harmed = sum(row.harmed for row in benefit_rows(summary))
    found = KeptOwn.from_json(summary["kept_own"])
    assert found is not None and (found.asked, found.answered, found.said) == (SITES, SITES, harmed)
    assert found.estimate == pytest.approx(harmed, abs=0.01) and (found.low, found.high) == (1, 1)
    assert found.sentence in html.unescape((out / "report.html").read_text())
    assert all(19.5 < spent <= 20.0 for spent in summary["epsilon"].values())


def test_by_default_nothing_of_the_kind_is_computed(tmp_path: Path) -> None:
    silent = {"benefit_epsilon": 0.0}
    plan = make_plan(tmp_path, simulation={"baselines": "zero-shot"}, privacy=silent)
    summary = Simulation(plan, tmp_path / "out", Console(file=io.StringIO())).run(report=False)
    assert "benefit" not in summary
    assert "kept_own" not in summary
    assert benefit_rows(summary) == [] and benefit_sentence(summary) == ""


def test_where_sites_keep_a_part_each_is_judged_with_its_own(tmp_path: Path) -> None:
    plan = make_plan(
        tmp_path,
        aggregation={"method": "fedsa"},
        privacy={"benefit_epsilon": 0.0},
        training={"mode": "local", "lora": "auto", "local_steps": 2, "expected_batch_size": 8},
        rounds={"count": 2, "evaluate_every": 0, "warm_start": 0},
        adapter={"rank": 2, "layers": [-1]},
    )
    summary = Simulation(plan, tmp_path / "out", Console(file=io.StringIO())).run(report=False)
    found = summary["benefit"]
    assert len(found) == SITES and not found[ALIEN]["unseen_by_federation"]
    assert len({row["models"]["federated"]["score"] for row in found.values()}) > 1
    assert "trained on these records" in benefit_sentence(summary)
