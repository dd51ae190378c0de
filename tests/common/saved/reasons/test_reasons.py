"""Reasons of answers: they add up, name what was planted, and are shown as plain text."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from lorica.common.backbone.loading import backbone_of
from lorica.common.cli.command import app
from lorica.common.errors import Code, LoricaError
from lorica.common.saved.folder import load_adapter, save_adapter
from lorica.common.saved.predict import Predictor, record_of
from lorica.common.saved.reasons.attribution import Explainer
from lorica.common.saved.reasons.page import pieces
from lorica.common.tasks import task_of
from tests.common.saved.exported.test_exports import adapter_of
from tests.tasks import KINDS, example, plan_of

pytest.importorskip("captum", reason="captum is not installed")

TEXT = "my card is lost  and the doctor was tired"
EXPLAINED = [kind for kind in KINDS if kind != "token-classification"]


def explain(adapter: Path, *more: str) -> Result:
    arguments = ["explain-prediction", str(adapter), *more]
    return CliRunner().invoke(app, arguments, terminal_width=200)


@pytest.mark.parametrize("kind", EXPLAINED)
def test_weights_add_up_to_what_was_read(kind: str, tmp_path: Path, small_backbone: Path) -> None:
    """Completeness (Sundararajan et al. 2017, proposition 1): within 5 % of the largest weight or
    of the change, within 20 % of it for a random network of images with large weights; what is
    missing is said."""
    adapter = adapter_of(kind, tmp_path, small_backbone)
    _, record = example(kind, load_adapter(adapter).plan, tmp_path)
    found = Explainer(adapter)(record)
    weights = [weight for *_, weight in found.words] + [share.weight for share in found.table]
    total = sum(weights) + found.rest
    if found.pixels is not None:
        total += float(found.pixels.sum())
        weights += [float(np.abs(found.pixels).max())]
    assert total + found.missing == pytest.approx(found.change, abs=1e-4)
    scale = max(abs(found.change), *map(abs, weights))
    assert scale > 0 and abs(found.missing) <= (0.05 if found.pixels is None else 0.2) * scale
    said = found.answer
    if found.nearest and kind != "multi-label-classification":
        assert said == found.nearest[0][0]


def test_the_word_that_decides_has_the_largest_weight(tmp_path: Path, small_backbone: Path) -> None:
    """A head that looks for one word's direction in the features finds that word."""
    plan = plan_of("text-classification", small_backbone, adapter={"kind": "head"})
    backbone = backbone_of(plan)
    task = task_of(plan)
    state = task.start(backbone)
    model = task.model(backbone).eval()
    model.load_state(state)
    with torch.no_grad():
        record = record_of(plan, "card card card", {})
        other = record_of(plan, "doctor doctor doctor", {})
        direction = [
            model.features(model.pooled_of_ids(*task.encode(backbone, r).collate([0])))[0]
            for r in (record, other)
        ]
    state["head.weight"] = torch.stack([direction[1] - direction[0], direction[0] - direction[1]])
    save_adapter(tmp_path / "adapter", state, plan, backbone)
    explainer = Explainer(tmp_path / "adapter")
    found = explainer(record_of(plan, "card today is very old", {}), "money")
    assert found.strongest[0].part == "card" and found.strongest[0].weight > 0
    against = explainer(record_of(plan, "card today is very old", {}), "health")
    assert against.strongest[0].weight == pytest.approx(-found.strongest[0].weight, rel=1e-3)


def test_words_stand_where_they_are_in_the_text(tmp_path: Path, small_backbone: Path) -> None:
    adapter = adapter_of("text-classification", tmp_path, small_backbone)
    found = Explainer(adapter)(record_of(load_adapter(adapter).plan, TEXT, {}))
    assert [TEXT[first:last] for first, last, _ in found.words] == TEXT.split()
    assert "".join(piece.text for piece in pieces(found)) == TEXT
    assert max(abs(piece.strength) for piece in pieces(found)) == 1.0
    (prediction,) = Predictor(adapter)([TEXT])
    assert found.answer == prediction.shown
    assert found.certainty == pytest.approx(prediction.certainty, abs=1e-5)


def test_text_from_outside_is_plain_text_in_terminal_and_page(
    tmp_path: Path, small_backbone: Path
) -> None:
    adapter = adapter_of("text-classification", tmp_path, small_backbone)
    page = tmp_path / "why.html"
    nasty = "<script>alert(1)</script> [red]card[/red] \x1b[31m lost"
    done = explain(adapter, nasty, TEXT, "--html", str(page))
    assert done.exit_code == 0, done.exception
    assert "\x1b[31m lost" not in done.output and "[red]card[/red]" in done.output
    text = page.read_text()
    assert "<script>" not in text and html.escape("<script>alert(1)</script>") in text
    assert text.count("<section") == 2 and "background: rgba" in text
    assert "integral is off" in done.output and "Nearest labels" in done.output


def test_an_image_has_a_picture_and_a_table_its_columns(
    tmp_path: Path, small_backbone: Path
) -> None:
    adapter = adapter_of("image-table-classification", tmp_path, small_backbone)
    name, _ = example("image-table-classification", load_adapter(adapter).plan, tmp_path)
    page = tmp_path / "why.html"
    done = explain(adapter, name, "--value", "age=80", "--value", "ward=er", "--html", str(page))
    assert done.exit_code == 0, done.exception
    assert "data:image/png;base64," in page.read_text()
    assert "age" in done.output and "ward" in done.output


def test_what_cannot_be_explained_is_refused(tmp_path: Path, small_backbone: Path) -> None:
    adapter = adapter_of("text-classification", tmp_path, small_backbone)
    cases: list[tuple[Code, tuple[Any, ...]]] = [
        (Code.DATA_UNKNOWN_LABEL, (TEXT, "--label", "fever")),
        (Code.DATA_COLUMN, (TEXT, "--value", "age=3")),
        (Code.DATA_EMPTY_TEXT, (" ",)),
    ]
    for code, more in cases:
        refused = explain(adapter, *more).exception
        assert isinstance(refused, LoricaError) and refused.code is code
    assert explain(adapter, TEXT, "--value", "age").exit_code == 2
    entities = adapter_of("token-classification", tmp_path / "entities", small_backbone)
    refused = explain(entities, TEXT).exception
    assert isinstance(refused, LoricaError) and refused.code is Code.PLAN_BAD_VALUE
