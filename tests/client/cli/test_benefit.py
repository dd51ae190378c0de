"""``lorica site benefit``: at a site, for itself alone."""

from __future__ import annotations

import json
import random
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lorica.common.backbone.loading import backbone_of
from lorica.common.cli.command import app
from lorica.common.saved.folder import load_adapter, save_adapter
from lorica.common.saved.predict import Predictor
from lorica.common.tasks import task_of
from tests.client.service.helpers import make_site, small_plan
from tests.tasks import HEALTH, MONEY

ROWS = 160


@pytest.fixture
def site(tmp_path: Path, small_backbone: Path) -> Path:
    """A site whose notes are about money or health, as two words tell; and an adapter."""
    config = make_site(tmp_path / "site", small_backbone)
    draw = random.Random(0)
    rows = []
    for row in range(ROWS):
        label, words = [("money", MONEY), ("health", HEALTH)][row % 2]
        rows.append(f"{' '.join(draw.choices(words, k=4))} {row},{label}\n")
    (config.parent / "records.csv").write_text("text,label\n" + "".join(rows))
    # which records are set aside, and so which model wins, follows from the site's own secret
    secret = config.parent / "noise.key"
    secret.write_bytes(bytes(range(32)))
    secret.chmod(0o600)
    plan = small_plan(small_backbone)
    backbone = backbone_of(plan)
    start = task_of(plan).start(backbone)
    worse = start | {"head.weight": -start["head.weight"]}
    save_adapter(tmp_path / "adapter", worse, plan, backbone)
    return config


def benefit(site: Path, *more: str) -> Result:
    adapter = site.parents[1] / "adapter"
    arguments = ["site", "benefit", str(adapter), "--config", str(site), *more]
    return CliRunner().invoke(app, arguments, terminal_width=200)


def test_a_site_keeps_its_better_model_and_tells_nobody(site: Path, tmp_path: Path) -> None:
    """The folder predicts, says that it has no privacy, and is the owner's alone; the ledger and
    everything else at the site are as before."""
    before = {path: path.read_bytes() for path in site.parent.rglob("*") if path.is_file()}
    done = benefit(site, "--output", str(tmp_path / "kept"))
    assert done.exit_code == 0, done.exception
    assert "For this site alone" in done.output
    content = json.loads((tmp_path / "kept" / "benefit.json").read_text())
    assert ("did not help" in done.output) is (content["kept"] == "own")
    assert content["kept"] in ("own", "tuned") and content["unseen_by_federation"]
    models = content["models"]
    assert models[content["kept"]]["score"] > models["federated"]["score"]
    assert content["trained_on"] + content["units_aside"] == ROWS
    saved = load_adapter(tmp_path / "kept")
    assert not saved.plan.privacy.private
    assert "without privacy" in (tmp_path / "kept" / "README.md").read_text()
    texts, labels = zip(
        *(row.split(",") for row in (site.parent / "records.csv").read_text().split("\n")[1:-1]),
        strict=True,
    )
    kept, given = (Predictor(tmp_path / name).score(texts, labels) for name in ("kept", "adapter"))
    assert kept.score > given.score
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o700
    after = {path: path.read_bytes() for path in site.parent.rglob("*") if path.is_file()}
    assert after == before


def test_what_cannot_be_trained_is_refused(site: Path) -> None:
    assert benefit(site, "--trains", "everything").exit_code == 2
