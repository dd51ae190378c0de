"""`lorica run list` and `show`: every task by its own metric, in its own unit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorica.common.plan import RunPlan
from lorica.server.coordinator.cli.run import app
from lorica.server.coordinator.home import CoordinatorConfig, CoordinatorHome
from lorica.server.coordinator.orders import RunPlace, new_order
from lorica.server.results.folder import ROUNDS
from lorica.server.results.round import RoundRecord, SiteRound


@pytest.mark.parametrize(
    ("record", "shown"),
    [
        ({"headline": "r2", "metrics": {"r2": -0.125, "mae": 2.0}}, "R² -0.125"),
        ({"headline": "entity_f1", "metrics": {"entity_f1": 0.5}}, "entity F1 50.0%"),
        ({"headline": "accuracy", "metrics": {"accuracy": 0.61, "perplexity": 7.5}}, "61.0%"),
        ({"headline": "micro_f1", "site_metrics": {"micro_f1": 0.25}}, "micro F1 25.0%"),
        ({"accuracy": 0.8}, "accuracy 80.0%"),
        ({"headline": "r2", "site_metrics": {"loss": 0.3}}, ""),
        (
            {"headline": "micro_f1", "site_metrics": {"accuracy": 0.77}, "site_accuracy": 0.77},
            "",
        ),
    ],
)
def test_a_runs_score_is_its_tasks_headline(
    tmp_path: Path, record: dict[str, object], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("LORICA_STORE", "none")
    home = CoordinatorHome(tmp_path / "home")
    home.create(CoordinatorConfig())
    place = RunPlace(home.runs, "alpha")
    place.folder.create(RunPlan().replace(task={"labels": ["x", "y"]}))
    place.write(new_order("alpha", "tester"))
    made = RoundRecord(3, [SiteRound("north", "ok")], **record)  # type: ignore[arg-type]
    (place.path / ROUNDS).write_text(json.dumps(made.to_dict()) + "\n")
    for command in (["list"], ["show", "alpha"]):
        done = CliRunner().invoke(app, [*command, "--home", str(home.path)])
        assert done.exit_code == 0, done.exception
        assert shown in done.stdout, done.stdout
        assert "77.0%" not in done.stdout
        assert "score" in done.stdout and "None" not in done.stdout


def test_the_score_of_a_run_whose_lora_was_given_up_is_that_of_what_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    home = CoordinatorHome(tmp_path / "home")
    home.create(CoordinatorConfig())
    place = RunPlace(home.runs, "alpha")
    place.folder.create(RunPlan().replace(task={"labels": ["x", "y"]}))
    place.write(new_order("alpha", "tester"))
    rounds = [
        RoundRecord(2, stage="head", site_metrics={"accuracy": 0.7}),
        RoundRecord(3, stage="LoRA", site_metrics={"accuracy": 0.4}, lora_dropped=True),
    ]
    lines = [json.dumps(record.to_dict()) + "\n" for record in rounds]
    (place.path / ROUNDS).write_text("".join(lines))
    listed = CliRunner().invoke(app, ["list", "--home", str(home.path)]).stdout
    assert "70.0%" in listed and "40.0%" not in listed
    shown = CliRunner().invoke(app, ["show", "alpha", "--home", str(home.path)]).stdout
    assert "accuracy 40.0% (given up)" in shown
