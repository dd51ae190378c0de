"""``lorica site evaluate``: on the site's own records, those that the run set aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sklearn.metrics import accuracy_score
from typer.testing import CliRunner, Result

from lorica.client.config.site import load_site
from lorica.client.data.reading import read_records
from lorica.client.mechanism.evaluation import set_aside
from lorica.client.training.opening import site_secret
from lorica.common.backbone.loading import backbone_of
from lorica.common.cli.command import app
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.secret import derived
from lorica.common.saved.folder import load_adapter, save_adapter
from lorica.common.saved.predict import Predictor
from lorica.common.tasks import task_of
from tests.client.cli.test_forget import make
from tests.client.service.helpers import small_plan


@pytest.fixture
def site(tmp_path: Path, small_backbone: Path) -> Path:
    plan = small_plan(small_backbone, privacy={"unit": "patient"})
    backbone = backbone_of(plan)
    save_adapter(tmp_path / "adapter", task_of(plan).start(backbone), plan, backbone)
    return make(tmp_path / "site", small_backbone, columns=["patient_group"])


def evaluate(site: Path, *more: str) -> Result:
    adapter = site.parents[1] / "adapter"
    arguments = ["site", "evaluate", str(adapter), "--config", str(site), "--draws", "20", *more]
    return CliRunner().invoke(app, arguments, terminal_width=200)


def with_groups(site: Path) -> None:
    path = site.parent / "records.csv"
    head, *rows = path.read_text().splitlines()
    grouped = [f"{row},{'ab'[at // 2 % 2]}" for at, row in enumerate(rows)]
    path.write_text("\n".join([f"{head},patient_group", *grouped]) + "\n")


def test_figures_are_of_the_records_that_no_round_trained_on(site: Path, tmp_path: Path) -> None:
    with_groups(site)
    done = evaluate(site, "--out", str(tmp_path / "out"), "--by", "patient_group")
    assert done.exit_code == 0, done.exception
    config, plan = load_site(site), load_adapter(tmp_path / "adapter").plan
    records = read_records(config, site.parent)
    aside = set_aside(records, plan, derived(site_secret(config, site.parent), "aside"))
    rows = aside.nonzero()[0].tolist()
    own = records.take(rows)
    said = [found.shown for found in Predictor(tmp_path / "adapter")(list(own.texts))]
    held = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert held["records"] == len(rows) > 0
    assert held["metrics"]["accuracy"]["value"] == pytest.approx(accuracy_score(own.labels, said))
    assert {group["value"] for group in held["groups"]} <= {"a", "b"}
    assert "For this site alone" in done.output and "trained on these" not in done.output
    whole = evaluate(site, "--all", "--out", str(tmp_path / "all"))
    assert "trained on these records, too" in whole.output
    assert json.loads((tmp_path / "all" / "evaluation.json").read_text())["records"] == 120


def test_a_column_that_the_site_does_not_keep_is_refused(site: Path) -> None:
    with_groups(site)
    refused = evaluate(site, "--by", "sex").exception
    assert isinstance(refused, LoricaError) and refused.code is Code.DATA_COLUMN
