"""Which modules can be adapted is found by trying each, and `lorica backbone check` says it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from lorica.client.choice.adaptable import adaptable, batch_norms, trial_plan
from lorica.client.cli.backbone import app
from lorica.client.mechanism.gradient_trial import require_right_gradients
from lorica.common.backbone.loading import load_backbone
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.subject import BackbonePlan
from lorica.common.tasks import task_of
from tests.families import make_family, make_image_family


def found(folder: Path, *, images: bool = False) -> dict[str, str]:
    backbone = load_backbone(BackbonePlan(source=str(folder)), images=images)
    return {row.name: row.problem for row in adaptable(backbone)}


def test_every_linear_module_of_a_plain_encoder_can_be_adapted(small_backbone: Path) -> None:
    rows = found(small_backbone)
    assert set(rows) == {"query", "key", "value", "dense", "biases"}
    assert not any(rows.values())


def test_modules_that_run_twice_are_told_from_those_that_do_not(tmp_path: Path) -> None:
    rows = found(make_family(tmp_path / "deberta", "deberta-v2", share_att_key=True))
    wrong = {name for name, problem in rows.items() if "runs 2 times" in problem}
    assert wrong == {"query_proj", "key_proj"}
    assert not rows["value_proj"] and not rows["dense"] and not rows["biases"]


def test_of_a_model_with_tokens_first_only_what_has_records_first_is_offered(
    tmp_path: Path,
) -> None:
    rows = found(make_family(tmp_path / "longformer", "longformer"))
    assert "record first" in rows["query"] and "record first" in rows["value"]
    assert "never be trained" in rows["query_global"]  # there is no global attention
    assert not rows["dense"]


@pytest.mark.parametrize(
    "family",
    ["bert", "distilbert", "mpnet", "modernbert", "t5", "bart", "gpt2", "llama", "gemma3", "bloom"],
)
def test_the_attention_of_every_layer_can_be_adapted(tmp_path: Path, family: str) -> None:
    """The adapter that a plan has by itself."""
    backbone = load_backbone(BackbonePlan(source=str(make_family(tmp_path / family, family))))
    plan = trial_plan(backbone, kind="lora", target_modules=RunPlan().adapter.target_modules)
    model = task_of(plan).model(backbone)
    layers = {name.partition(".lora_")[0] for name in model.adapter_parameters if ".lora_" in name}
    assert len(layers) >= backbone.layers
    require_right_gradients(plan, backbone)


def test_batch_norms_are_counted(tmp_path: Path) -> None:
    folder = make_image_family(tmp_path / "mobilenet", "mobilenet-v2")
    assert batch_norms(load_backbone(BackbonePlan(source=str(folder)))) > 10
    assert not batch_norms(load_backbone(BackbonePlan(source=str(make_family(tmp_path, "bert")))))


def test_the_command_prints_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder = make_family(tmp_path / "qwen2", "qwen2")
    done = CliRunner().invoke(app, ["check", str(folder), "--length", "50"])
    assert done.exit_code == 0, done.output
    for word in ("Qwen2Model", "SHA-256", "64 tokens", "50 tokens", "windows", "q_proj", "right"):
        assert word in done.output
    images = make_image_family(tmp_path / "resnet", "resnet")
    assert "batch norms" in CliRunner().invoke(app, ["check", str(images)]).output
    refused = CliRunner().invoke(app, ["check", str(tmp_path / "none")])
    assert isinstance(refused.exception, LoricaError)
    assert refused.exception.code is Code.BACKBONE_NOT_FOUND
