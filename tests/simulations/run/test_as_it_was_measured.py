"""What a run counts and measures is what people get: units, and what the saved adapter computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorica.client.config.site import documented_site, load_site
from lorica.client.data.check.overview import overview
from lorica.client.data.reading import roles_of, shown, site_batches
from lorica.common.display.console import Console
from lorica.common.plan import RunPlan
from lorica.common.saved.predict import Predictor
from lorica.common.tasks.run_data import load_data
from lorica.simulations.run.simulate import Simulation

PATIENTS = 20


def simulated(out: Path, plan: RunPlan) -> dict[str, Any]:
    return Simulation(plan, out, Console(quiet=True)).run(report=False)


def plan_for(path: Path, backbone: Path, **sections: Any) -> RunPlan:
    plan = RunPlan().replace(
        backbone={"source": str(backbone)},
        data={"train": str(path)},
        adapter={"kind": "head"},
        training={"expected_batch_size": 6},
        rounds={"count": 2},
        privacy={"delta": 1e-3},
        simulation={"sites": 2},
    )
    return plan.replace(**sections)


def test_ids_written_in_three_ways_are_one_patient_for_the_check_and_the_run(
    tmp_path: Path, small_backbone: Path
) -> None:
    """1000, 1000.0 and "1000" in JSON lines: 20 units, not 40 or 60."""
    rows = [
        {"text": f"card money {row} {form}", "label": "ab"[row % 2], "patient": form(1000 + row)}
        for row in range(PATIENTS)
        for form in (int, float, str)
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = documented_site("north", path.name).replace('unit = ""', 'unit = "patient"', 1)
    (tmp_path / "site.toml").write_text(text)
    site = load_site(tmp_path / "site.toml")
    assert site.data.unit == "patient"
    batches = site_batches(site.data, tmp_path, None)
    found = overview(batches, roles_of(site.data, tmp_path), shown(site.data))
    assert found.units.keys == PATIENTS and found.units.largest == 3
    plan = plan_for(path, small_backbone, data={"unit": "patient"}, privacy={"unit": "patient"})
    summary = simulated(tmp_path / "out", plan)
    units = sum(site["units"] for site in summary["privacy"].values())
    records = sum(site["records"] for site in summary["privacy"].values())
    assert records == 3 * units and units == PATIENTS - summary["test_records"] // 3


@pytest.mark.parametrize("mode", ["cls", "lasttoken", ["mean", "max"]])
def test_a_sentence_encoders_pooling_is_the_same_in_a_run_and_in_its_adapter(
    tmp_path: Path, small_backbone: Path, mode: str | list[str]
) -> None:
    (small_backbone / "1_Pooling").mkdir()
    pooling = {"embedding_dimension": 32, "pooling_mode": mode}
    (small_backbone / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {
            "idx": 1,
            "name": "1",
            "path": "1_Pooling",
            "type": "sentence_transformers.models.Pooling",
        },
    ]
    (small_backbone / "modules.json").write_text(json.dumps(modules))
    path = tmp_path / "records.csv"
    words = ["card", "money", "doctor", "fever"]
    rows = [f"the {words[n % 4]} {words[n // 4 % 4]},{'ab'[n % 2]}" for n in range(60)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    plan = plan_for(path, small_backbone, privacy={"epsilon": float("inf")})
    summary = simulated(tmp_path / "out", plan)
    test = load_data(plan).test
    predictor = Predictor(tmp_path / "out" / "adapter")
    metrics = predictor.score(test.texts, test.labels)
    assert metrics.score == summary["score"]
    assert metrics.values["loss"] == pytest.approx(summary["loss"], rel=1e-6)
    about = json.loads((tmp_path / "out" / "adapter" / "lorica.json").read_text())
    assert about["pooling"] == ([mode] if isinstance(mode, str) else mode)
