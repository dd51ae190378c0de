"""Whole runs on a backbone in 8 or 4 bits: they learn as well as in float32."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from lorica.common.saved.predict import Predictor
from lorica.simulations.run.simulate import Simulation
from tests.tasks import plan_of, rows_of, write_rows

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


def score(folder: Path, backbone: Path, number: str, epsilon: float) -> float:
    data = write_rows(folder / "rows.jsonl", rows_of("text-classification", 240))
    plan = plan_of("text-classification", backbone, data).replace(
        backbone={"source": str(backbone), "quantize": number},
        privacy={"epsilon": epsilon, "delta": 1e-3},
        training={
            "mode": "local",
            "expected_batch_size": 24,
            "local_steps": 8,
            "learning_rate": 0.02,
            "head_learning_rate": 0.1,
        },
        rounds={"count": 4},
    )
    out = folder / f"run-{number}"
    summary = Simulation(plan, out, Console(file=io.StringIO(), width=100)).run(report=False)
    about = json.loads((out / "adapter" / "lorica.json").read_text(encoding="utf-8"))
    assert about["backbone"]["quantize"] == number
    (answer,) = Predictor(out / "adapter")(["fever and pain"])
    assert answer.shown
    return float(summary["score"])


@pytest.mark.slow("three whole runs")
@pytest.mark.parametrize("epsilon", [float("inf"), 8.0])
def test_scores_in_fewer_bits_are_near_the_score_in_float32(
    tmp_path: Path, small_backbone: Path, epsilon: float
) -> None:
    """Three sites, LoRA on two layers; chance is 0.5."""
    whole = score(tmp_path, small_backbone, "none", epsilon)
    found = [score(tmp_path, small_backbone, number, epsilon) for number in ("int8", "int4")]
    assert whole > (0.9 if epsilon == float("inf") else 0.6), whole
    assert all(value > whole - 0.1 for value in found), (whole, found)
