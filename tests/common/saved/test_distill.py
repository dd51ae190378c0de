"""A student of an adapter: smaller, in agreement with it, and an adapter like any other."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from lorica.common.backbone.loading import load_backbone
from lorica.common.cli.command import app
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.subject import BackbonePlan
from lorica.common.saved.distill import FIGURES, distill
from lorica.common.saved.exported.fold import fold
from lorica.common.saved.folder import load_adapter
from lorica.common.saved.predict import Predictor
from lorica.common.saved.push import push_to_folder
from lorica.common.saved.student import kept_layers, smaller
from tests.saved_adapters import random_adapter
from tests.tasks import HEALTH, MONEY


@pytest.fixture
def adapter(tmp_path: Path, small_backbone: Path) -> Path:
    return random_adapter(tmp_path / "adapter", small_backbone, ["a", "b", "c"], center=0.02)


def sentences(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(MONEY + HEALTH, k=5)) for _ in range(count)]


def test_layers_are_kept_evenly_from_the_first_to_the_last() -> None:
    assert kept_layers(6, 3) == [0, 2, 5] and kept_layers(12, 2) == [0, 11]
    assert kept_layers(4, 1) == [0] and kept_layers(5, 4) == [0, 1, 3, 4]


def test_a_student_starts_as_layers_of_the_merged_backbone(adapter: Path) -> None:
    """Reference: the merged tensors by their names; the backbone itself stays as it was."""
    saved = load_adapter(adapter)
    backbone = saved.backbone()
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    folding = fold(saved, backbone)
    merged = folding.own | folding.changed
    model = smaller(folding, 2)
    assert model.config.num_hidden_layers == 2
    for name, tensor in model.state_dict().items():
        there = name.replace("encoder.layer.1.", "encoder.layer.2.")
        assert torch.equal(tensor, merged[there]), name
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, before[name])
    for count in (0, 3, 4):
        with pytest.raises(LoricaError) as caught:
            smaller(folding, count)
        assert caught.value.code is Code.BACKBONE_UNSUPPORTED


def test_a_student_comes_to_agree_and_is_used_like_any_adapter(
    adapter: Path, tmp_path: Path
) -> None:
    texts = sentences(400)
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    arguments = ["distill", str(adapter), "--texts", str(tmp_path / "texts.txt"), "--layers", "2"]
    arguments += ["--out", str(tmp_path / "student"), "--epochs", "6"]
    unsaid = CliRunner().invoke(app, arguments)
    assert unsaid.exit_code == 2 and "--public-texts" in unsaid.output
    assert not (tmp_path / "student").exists()
    arguments += ["--public-texts"]
    done = CliRunner().invoke(app, arguments, terminal_width=300)
    assert done.exit_code == 0, done.exception
    found: dict[str, Any] = json.loads((tmp_path / "student" / FIGURES).read_text())
    assert found["layers"] == 2 and found["parameters"] < found["teacher_parameters"]
    assert found["agreement"] > max(found["before"], 0.6) and found["epoch"] > 0
    fresh = sentences(500)[400:]
    theirs = [one.shown for one in Predictor(adapter)(fresh)]
    student = Predictor(tmp_path / "student" / "adapter")
    same = [one.shown == other for one, other in zip(student(fresh), theirs, strict=True)]
    assert sum(same) / len(same) > found["agreement"] - 0.2
    own = load_backbone(BackbonePlan(source=str(tmp_path / "student" / "backbone")))
    assert own.layers == 2
    assert "same label" in (tmp_path / "student" / "adapter" / "README.md").read_text()
    push_to_folder(tmp_path / "student" / "adapter", tmp_path / "given")
    assert isinstance(CliRunner().invoke(app, arguments).exception, LoricaError)  # it exists


def test_texts_that_are_not_public_leave_a_student_without_privacy(
    adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "student"
    distill(adapter, sentences(40), out, layers=1, epochs=0, public=False)
    assert not load_adapter(out / "adapter").plan.privacy.private
    assert load_adapter(adapter).plan.privacy.private
    with pytest.raises(LoricaError) as caught:
        push_to_folder(out / "adapter", tmp_path / "given")
    assert caught.value.code is Code.PUSH_REFUSED


def test_too_few_texts_are_refused_and_nothing_is_left(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(LoricaError) as caught:
        distill(adapter, ["the same"] * 50, tmp_path / "student", layers=1)
    assert caught.value.code is Code.DATA_TOO_FEW_RECORDS
    assert not (tmp_path / "student").exists()
