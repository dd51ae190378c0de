"""Exports of every task compute what the adapter does, by the code of their own READMEs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from lorica.common.adapter.state import State
from lorica.common.backbone.loading import backbone_of
from lorica.common.cli.command import app
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.saved.exported.agreement import (
    TOLERANCE,
    Agreement,
    compare,
    outputs_of,
    require_agreement,
)
from lorica.common.saved.exported.folded import adapted_model
from lorica.common.saved.folder import load_adapter, save_adapter
from lorica.common.tasks import task_of
from tests.language_models import make_language_model
from tests.tasks import KINDS, example, plan_of, write_backbone

WHY = "torch.onnx traces for seconds"


def adapter_of(kind: str, folder: Path, small_backbone: Path, **sections: Any) -> Path:
    """An adapter of a task whose factors and head were moved at random."""
    plan = plan_of(kind, write_backbone(folder / "vit", kind, small_backbone), **sections)
    backbone = backbone_of(plan)
    state: State = task_of(plan).start(backbone)
    generator = torch.Generator().manual_seed(3)
    moved = {n: t + 0.3 * torch.randn(t.shape, generator=generator) for n, t in state.items()}
    save_adapter(folder / "adapter", moved, plan, backbone)
    return folder / "adapter"


def export(adapter: Path, out: Path, *more: str) -> Result:
    arguments = ["export", str(adapter), "--out", str(out), *more]
    return CliRunner().invoke(app, arguments, terminal_width=400)


def wanted_outputs(kind: str, adapter: Path, folder: Path) -> torch.Tensor:
    """What the adapter gives for the README's own record."""
    saved = load_adapter(adapter)
    task, model = adapted_model(saved, saved.backbone())
    _, record = example(kind, saved.plan, folder)
    inputs = task.encode_for_use(saved.backbone(), record)
    return outputs_of(task, model, inputs)[0]


def run_readme(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The code of a README as it stands, run in its folder."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(code, found)
    return found


def largest(output: str) -> float:
    """The printed difference."""
    return float(re.findall(r"differ by at most (\S+?)(?:[.,;]?\s|$)", output)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["merged", "peft"])
def test_a_folder_for_transformers_or_peft_gives_the_adapters_outputs(
    kind: str, form: str, tmp_path: Path, small_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-4, by the code of its README; what was compared before is printed."""
    adapter = adapter_of(kind, tmp_path, small_backbone)
    done = export(adapter, tmp_path / "out", "--format", form)
    assert done.exit_code == 0, done.exception
    assert "compared with the adapter on 8 records" in done.output
    assert 0 <= largest(done.output) <= TOLERANCE
    wanted = wanted_outputs(kind, adapter, tmp_path / "out")
    found = run_readme(tmp_path / "out", monkeypatch)["outputs"][0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)
    assert wanted.abs().max() > 0.1  # nothing is compared with nothing


@pytest.mark.slow(WHY)
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_gives_the_adapters_outputs(
    kind: str, tmp_path: Path, small_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, by onnxruntime; texts of other lengths than those that were traced."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    adapter = adapter_of(kind, tmp_path, small_backbone)
    done = export(adapter, tmp_path / "out", "--format", "onnx")
    assert done.exit_code == 0, done.exception
    assert 0 <= largest(done.output) <= TOLERANCE
    wanted = wanted_outputs(kind, adapter, tmp_path / "out")
    found = run_readme(tmp_path / "out", monkeypatch)
    torch.testing.assert_close(
        torch.from_numpy(found["outputs"][0]), wanted, rtol=0, atol=TOLERANCE
    )
    about = json.loads((tmp_path / "out" / "task.json").read_text())
    assert about["task"] == kind


@pytest.mark.slow(WHY)
def test_in_int8_a_graph_is_smaller_and_says_how_far_it_is_off(
    tmp_path: Path, small_backbone: Path
) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    adapter = adapter_of("text-classification", tmp_path, small_backbone)
    assert export(adapter, tmp_path / "whole", "--format", "onnx").exit_code == 0
    done = export(adapter, tmp_path / "less", "--format", "onnx", "--numbers", "int8")
    assert done.exit_code == 0, done.exception
    said = re.findall(r"differ by at most (\S+?)(?:[.,;]?\s|$)", done.output)
    assert float(said[0]) <= TOLERANCE < float(said[1])
    import onnx

    kinds = {node.op_type for node in onnx.load(tmp_path / "less" / "model.onnx").graph.node}
    assert "MatMulInteger" in kinds and "MatMul" in kinds  # attention has no weights to round


def test_what_has_no_such_form_is_refused_and_nothing_is_written(
    tmp_path: Path, small_backbone: Path
) -> None:
    adapter = adapter_of(
        "text-classification", tmp_path, small_backbone, adapter={"kind": "bitfit"}
    )
    refused = export(adapter, tmp_path / "out", "--format", "peft").exception
    assert isinstance(refused, LoricaError) and refused.code is Code.EXPORT_FORM
    assert export(adapter, tmp_path / "out", "--numbers", "int8").exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_model_of_language_is_refused_as_a_graph_and_merged_as_a_folder(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    plan = RunPlan().replace(
        backbone={"source": str(make_language_model(tmp_path / "bert", "bert"))},
        task={"kind": "masked-lm"},
        data={"label": ""},
        adapter={"layers": [-1], "rank": 4},
    )
    backbone = backbone_of(plan)
    state = task_of(plan).start(backbone)
    state = {n: t + 0.1 for n, t in state.items()}
    save_adapter(tmp_path / "adapter", state, plan, backbone)
    refused = export(tmp_path / "adapter", tmp_path / "out", "--format", "onnx").exception
    assert isinstance(refused, LoricaError) and refused.code is Code.EXPORT_FORM
    done = export(tmp_path / "adapter", tmp_path / "out")
    assert done.exit_code == 0 and largest(done.output) <= TOLERANCE


def test_outputs_that_are_apart_are_refused() -> None:
    """In proportion to their size; what is no number is never near enough."""
    ours = [torch.tensor([1.0, -2.0]), torch.tensor([0.0, 2.0])]
    near = compare(ours, [output + 1e-4 for output in ours])
    assert near.same == 1.0 and near.size == 2.0
    assert require_agreement(near) is near
    assert compare(ours, [-output for output in ours]).same == 0.0
    for wrong in (3e-4, float("nan")):
        with pytest.raises(LoricaError) as refused:
            require_agreement(compare(ours, [output + wrong for output in ours]))
        assert refused.value.code is Code.EXPORT_DIFFERS
    assert Agreement(1, 0.0, 1.0, None).sentence.endswith("by at most 0.0e+00")
