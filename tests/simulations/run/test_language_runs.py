"""Language models in whole federations of three sites, with and without privacy."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lorica.common.plan import RunPlan
from lorica.common.saved.exported.merged import export_merged
from lorica.server.results.folder import RunFolder
from lorica.simulations.run.simulate import Simulation
from tests.language_models import (
    TARGETS,
    make_language_model,
    pretrain,
    questions,
    wrong_answers,
)

CASES = [("causal-lm", "gpt2"), ("causal-lm", "llama"), ("masked-lm", "bert")]
MODULES = TARGETS | {
    "gpt2": ["c_attn", "c_fc"],
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"],
}

pytestmark = pytest.mark.slow("pretrains a language model in each test")


def simulate(tmp_path: Path, kind: str, model: str, epsilon: str, **more: Any) -> list[Any]:
    """Records of all rounds of a small run on texts with one rule to be learnt."""
    table = tmp_path / "data.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        pairs = questions(600)
        if kind == "masked-lm":
            pairs = [(f"{prompt} {answer}", "") for prompt, answer in pairs]
        writer.writerows(pairs)
    folder = pretrain(make_language_model(tmp_path / model, model), wrong_answers(), steps=250)
    layers: list[int] = []
    content: dict[str, Any] = {
        "task": {"kind": kind, "mask_share": 0.3},
        "backbone": {"source": str(folder)},
        "adapter": {"target_modules": MODULES[model], "rank": 8, "layers": layers},
        "data": {"train": str(table), "validation": 0.3},
        "privacy": {"epsilon": epsilon, "clip_norm": 0.5, "evaluation_share": 0.2},
        "training": {
            "mode": "local",
            "local_steps": 15,
            "expected_batch_size": 48,
            "learning_rate": 0.01,
            "max_length": 32,
        },
        "aggregation": {"method": "fedavg"},
        "rounds": {"count": 2, "evaluate_every": 2},
        "simulation": {"sites": 3},
    }
    for section, values in more.items():
        content[section] = content.get(section, {}) | values
    run = Simulation(RunPlan.model_validate(content), tmp_path / "run", Console(quiet=True))
    run.run()
    return RunFolder(tmp_path / "run").rounds()


@pytest.mark.parametrize(("kind", "model"), CASES)
@pytest.mark.parametrize("epsilon", ["inf", "8"])
def test_a_federation_learns_within_its_budget(
    tmp_path: Path, kind: str, model: str, epsilon: str
) -> None:
    """Sixteen gradients of the sites; without a head, every round is one of LoRA factors."""
    rounds = simulate(
        tmp_path,
        kind,
        model,
        epsilon,
        training={"mode": "gradient", "lora_sample_rate": 0.5},
        rounds={"count": 16, "evaluate_every": 16},
        server={"lora_rate": 0.003},
    )
    first, last = rounds[0].metrics, rounds[-1].metrics
    assert last["loss"] < (0.85 if epsilon == "inf" else 0.9) * first["loss"]
    assert last["perplexity"] < first["perplexity"]
    assert set(rounds[-1].site_metrics) == {"accuracy", "loss"}


def test_local_steps_learn_too(tmp_path: Path) -> None:
    rounds = simulate(tmp_path, "causal-lm", "llama", "inf")
    first, last = rounds[0].metrics, rounds[-1].metrics
    assert last["loss"] < 0.5 * first["loss"]
    assert last["exact_match"] > first["exact_match"] + 0.2


def test_an_adapted_backbone_tells_more_than_the_one_it_came_from(tmp_path: Path) -> None:
    simulate(tmp_path, "masked-lm", "bert", "inf")
    merged = export_merged(tmp_path / "run" / "adapter", tmp_path / "merged")
    again = tmp_path / "again"
    again.mkdir()
    backbone = {"source": str(merged.folder), "sha256": merged.sha256}
    rounds = simulate(
        again,
        "masked-lm",
        "bert",
        "inf",
        backbone=backbone,
        rounds={"count": 1, "evaluate_every": 0},
    )
    before = RunFolder(tmp_path / "run").rounds()
    assert rounds[0].metrics["loss"] == pytest.approx(before[-1].metrics["loss"], abs=1e-4)
