"""A sweep's table, page and picture: every task by its own metric."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.simulations.sweep.page import PAGE, PICTURE, scores, sweep_table, write_page
from lorica.simulations.sweep.result import Result
from lorica.simulations.sweep.run import Cell, read_result


def result(variant: str, score: float, *, headline: str = "r2", seed: int = 0) -> Result:
    at = {"privacy.epsilon": 8.0, "simulation.seed": seed}
    accuracy = score if headline == "accuracy" else None
    return Result(variant, at, headline, score, accuracy, 1.0, 0.0, 8.0, 100, 100, 2.0, 10, "f")


def shown(results: list[Result]) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(sweep_table(results))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_regressions_sweep_is_sorted_and_shown_by_r2(tmp_path: Path) -> None:
    results = [
        result("worse", -0.5),
        result("worse", -0.1, seed=1),
        result("better", 0.25),
        result("better", 0.75, seed=1),
    ]
    assert list(scores(results)) == ["better", "worse"]
    text = shown(results)
    assert "R², mean" in text and "0.500 ± 0.250" in text and "-0.300 ± 0.200" in text
    assert "%" not in text and "ccuracy" not in text
    write_page(tmp_path, "rates", results)
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "R², mean" in page and "0.500 ± 0.250" in page and "ccuracy" not in page
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_accuracies_stay_in_percent(tmp_path: Path) -> None:
    text = shown([result("a", 0.8, headline="accuracy"), result("b", 0.5, headline="micro_f1")])
    assert "80.0%" in text and "50.0%" in text and "Accuracy or micro F1" in text


SUMMARY: dict[str, Any] = {
    "headline": "r2",
    "score": 0.4,
    "accuracy": None,
    "loss": 0.2,
    "baselines": {"zero_shot": 0.0},
    "epsilon": {"site-01": 7.9, "site-02": 8.0},
    "bytes_up_per_round": 200,
    "bytes_down_per_round": 400,
    "seconds": 3.0,
    "peak_rss_bytes": 1000,
    "plan_fingerprint": "f",
}


def test_a_run_without_accuracy_has_a_result(tmp_path: Path) -> None:
    cell = Cell("v", {}, RunPlan())
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    found = read_result(cell, tmp_path)
    assert (found.headline, found.score, found.accuracy) == ("r2", 0.4, None)


@pytest.mark.parametrize("gone", ["score", "headline", "epsilon"])
def test_a_damaged_summary_is_a_sentence(tmp_path: Path, gone: str) -> None:
    kept = {key: value for key, value in SUMMARY.items() if key != gone}
    (tmp_path / "summary.json").write_text(json.dumps(kept))
    with pytest.raises(LoricaError, match=r"is damaged") as caught:
        read_result(Cell("v", {}, RunPlan()), tmp_path)
    assert caught.value.code is Code.RUN_NOT_RESUMABLE
