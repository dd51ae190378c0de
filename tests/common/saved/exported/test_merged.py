"""Exported backbones: equal to backbone and adapter, whole or refused with a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoModel

from lorica.common.adapter.state import State
from lorica.common.backbone.files import read_weights
from lorica.common.backbone.loading import load_backbone
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.tensors import Part, part_of
from lorica.common.saved.exported.merged import export_merged
from lorica.common.saved.folder import save_adapter
from lorica.common.tasks import task_of
from tests.images import image_plan, make_image_backbone
from tests.language_models import make_language_model

IDS = torch.tensor([[2, 20, 21, 3], [2, 7, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])


def text_plan(backbone: Path, **adapter: Any) -> RunPlan:
    return RunPlan().replace(
        backbone={"source": str(backbone)}, task={"labels": ["a", "b"]}, adapter=adapter
    )


def saved(folder: Path, plan: RunPlan, *, moved: bool = True) -> State:
    """An adapter folder with the start of the plan's task, moved at random or not."""
    backbone = load_backbone(plan.backbone)
    state = task_of(plan).start(backbone)
    if moved:
        generator = torch.Generator().manual_seed(3)
        state = {n: t + 0.3 * torch.randn(t.shape, generator=generator) for n, t in state.items()}
    save_adapter(folder, state, plan, backbone)
    return state


@pytest.mark.parametrize("layers", [[-1], []])
@pytest.mark.parametrize("kind", ["bitfit", "lora"])
def test_an_exported_encoder_computes_what_backbone_and_adapter_do(
    small_backbone: Path, tmp_path: Path, kind: str, layers: list[int]
) -> None:
    """To 1e-5, by plain transformers; tensors that the adapter does not name are the backbone's."""
    plan = text_plan(small_backbone, kind=kind, layers=layers, rank=4)
    state = saved(tmp_path / "adapter", plan)
    merged = export_merged(tmp_path / "adapter", tmp_path / "merged")
    adapted = task_of(plan).model(load_backbone(plan.backbone)).eval()
    adapted.load_state(state)
    plain = AutoModel.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = adapted.encoder(input_ids=IDS, attention_mask=MASK).last_hidden_state
        found = plain(input_ids=IDS, attention_mask=MASK).last_hidden_state
    torch.testing.assert_close(found[MASK == 1], wanted[MASK == 1], rtol=0, atol=1e-5)
    before, after = read_weights(small_backbone), read_weights(tmp_path / "merged")
    assert before.keys() == after.keys()
    changed = sum(not torch.equal(before[name], after[name]) for name in before)
    count = sum(part_of(name) in (Part.BIAS, Part.B) for name in state)
    assert changed == merged.changed == count > 0


def test_biases_of_a_vision_transformer_are_merged(tmp_path: Path) -> None:
    """To 1e-5, by plain transformers."""
    plan = image_plan(make_image_backbone(tmp_path / "vit", "vit"), adapter={"kind": "bitfit"})
    state = saved(tmp_path / "adapter", plan)
    export_merged(tmp_path / "adapter", tmp_path / "merged")
    adapted = task_of(plan).model(load_backbone(plan.backbone)).eval()
    adapted.load_state(state)
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    plain = AutoModel.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = adapted.encoder(pixel_values=pixels).last_hidden_state
        found = plain(pixel_values=pixels).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_biases_find_their_tensors_where_files_put_a_prefix_before_them(tmp_path: Path) -> None:
    """A whole masked language model: its encoder's tensors begin with "bert."."""
    folder = make_language_model(tmp_path / "bert", "bert")
    plan = text_plan(folder, kind="bitfit", layers=[-1])
    state = saved(tmp_path / "adapter", plan)
    export_merged(tmp_path / "adapter", tmp_path / "merged")
    after = read_weights(tmp_path / "merged")
    assert any(name.startswith("bert.") for name in after)
    for name, tensor in state.items():
        if part_of(name) is Part.BIAS:
            assert torch.equal(after[f"bert.{name}"], tensor)


@pytest.mark.parametrize(
    ("adapter", "moved"),
    [({"kind": "head"}, True), ({"kind": "bitfit"}, False), ({"kind": "lora"}, False)],
)
def test_of_a_head_alone_the_backbone_is_written_as_it_is_with_the_head_beside_it(
    small_backbone: Path, tmp_path: Path, adapter: dict[str, Any], moved: bool
) -> None:
    state = saved(tmp_path / "adapter", text_plan(small_backbone, **adapter), moved=moved)
    found = export_merged(tmp_path / "adapter", tmp_path / "merged")
    assert found.changed == 0
    before, after = read_weights(small_backbone), read_weights(tmp_path / "merged")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    head = safetensors.torch.load((tmp_path / "merged" / "head.safetensors").read_bytes())
    assert {n for n in state if n.startswith("head.")} == head.keys()
    assert all(torch.equal(head[name], state[name]) for name in head)


def test_an_adapter_that_changes_nothing_and_has_no_head_is_refused(tmp_path: Path) -> None:
    """And nothing is written."""
    folder = make_language_model(tmp_path / "backbone", "bert")
    plan = text_plan(folder).replace(task={"kind": "masked-lm", "labels": []}, data={"label": ""})
    saved(tmp_path / "adapter", plan, moved=False)
    with pytest.raises(LoricaError, match="has no head") as refused:
        export_merged(tmp_path / "adapter", tmp_path / "merged")
    assert refused.value.code is Code.ADAPTER_MISMATCH
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["adapter", "backbone"]


def test_an_adapter_that_stays_at_its_sites_is_refused(
    small_backbone: Path, tmp_path: Path
) -> None:
    plan = text_plan(small_backbone, kind="lora", layers=[-1]).replace(
        aggregation={"method": "fedsa"}, training={"mode": "local"}
    )
    saved(tmp_path / "adapter", plan, moved=False)
    with pytest.raises(LoricaError, match="every site keeps") as refused:
        export_merged(tmp_path / "adapter", tmp_path / "merged")
    assert "lorica site adapter" in refused.value.mend
