"""``lorica evaluate`` on a file: its tables, page and JSON, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from sklearn.metrics import accuracy_score
from typer.testing import CliRunner, Result

from lorica.common.cli.command import app
from lorica.common.errors import Code, LoricaError
from lorica.common.saved.predict import Predictor
from tests.conftest import SMALL_WORDS, make_small_backbone
from tests.saved_adapters import random_adapter

LABELS = ["lost", "pain"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("judged")
    source = make_small_backbone(root / "backbone")
    return random_adapter(root / "adapter", source, LABELS, center=0.02)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("notes") / "notes.csv"
    with path.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["text", "label", "sex", "patient"])
        for row in range(60):
            words = " ".join(SMALL_WORDS[(row * k) % len(SMALL_WORDS)] for k in (1, 3, 7))
            writer.writerow([words, LABELS[row % 2], "fm"[row % 3 == 0], f"p{row // 2}"])
        writer.writerow(["", "pain", "f", "p99"])
    return path


def evaluate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], terminal_width=200)


def test_figures_are_scikit_learns_on_the_predictors_answers(
    adapter: Path, file: Path, tmp_path: Path
) -> None:
    done = evaluate(
        adapter, "-f", file, "--by", "sex", "--unit", "patient", "--recall", "pain=0.9",
        "--draws", "50", "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    with file.open(newline="") as opened:
        rows = [row for row in csv.DictReader(opened) if row["text"]]
    said = [
        found.content()["predicted_label"]
        for found in Predictor(adapter)([r["text"] for r in rows])
    ]
    held = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    right = accuracy_score([row["label"] for row in rows], said)
    assert held["records"] == 60
    assert held["metrics"]["accuracy"]["value"] == pytest.approx(right)
    groups = {group["value"]: group for group in held["groups"]}
    for sex in "fm":
        part = [number for number, row in enumerate(rows) if row["sex"] == sex]
        expected = accuracy_score([rows[n]["label"] for n in part], [said[n] for n in part])
        assert groups[sex]["metrics"]["accuracy"]["value"] == pytest.approx(expected)
    assert held["thresholds"][0]["recall"] >= 0.9
    assert "sex = f" in done.output and "1 rows without a text" in done.output
    assert (tmp_path / "out" / "evaluation.html").read_text().count("<svg") == 3


def test_what_cannot_be_judged_is_refused_by_a_code(adapter: Path, file: Path) -> None:
    refused = {
        Code.DATA_COLUMN: ("--by", "age"),
        Code.DATA_UNKNOWN_LABEL: ("--recall", "fever=0.5"),
        Code.PLAN_BAD_VALUE: ("--precision", "pain=2"),
    }
    for code, more in refused.items():
        found = evaluate(adapter, "-f", file, "--draws", "0", *more).exception
        assert isinstance(found, LoricaError) and found.code is code
    for more in ("pain", "pain=high"):
        assert evaluate(adapter, "-f", file, "--draws", "0", "--recall", more).exit_code == 2
