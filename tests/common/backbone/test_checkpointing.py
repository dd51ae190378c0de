"""Gradient checkpointing: the same gradients per record, with fewer activations kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lorica.client.mechanism.per_sample import enable_per_sample_gradients
from lorica.common.backbone.checkpointing import checkpoint_layers
from lorica.common.backbone.loading import load_backbone
from lorica.common.cache.prefix import CACHE_BYTES, PrefixCache
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import is_trained
from lorica.common.tasks.classes import loss_sum
from lorica.common.tasks.text_classification import TextClassifier, encode, starting_state

TEXTS = ["card lost", "fever and pain again", "my heart", "the doctor was very tired today"] * 2
LABELS = torch.tensor([0, 1, 1, 0] * 2)


def make_plan(backbone: Path, layers: list[int], *, on: bool) -> RunPlan:
    return RunPlan().replace(
        backbone={"source": str(backbone)},
        task={"labels": ["money", "health"]},
        adapter={"layers": layers, "rank": 4, "target_modules": ["query", "value", "dense"]},
        aggregation={"method": "fedavg"},
        training={"mode": "local", "gradient_checkpointing": "layers" if on else "none"},
    )


def gradients(plan: RunPlan, cache_bytes: int) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients per record of one backward pass, and the bytes of activations kept for it."""
    backbone = load_backbone(plan.backbone)
    model = TextClassifier(backbone, plan).eval()
    trained = {
        name: parameter
        for name, parameter in model.adapter_parameters.items()
        if is_trained(plan.aggregation.method, name)
    }
    enable_per_sample_gradients(model, trained.values())
    state = starting_state(model, backbone, plan)
    for name, tensor in state.items():
        if ".lora_B." in name:
            state[name] = torch.linspace(-0.3, 0.4, tensor.numel()).reshape(tensor.shape)
    model.load_state(state)
    cache = PrefixCache(model, encode(backbone, TEXTS, 64), limit_bytes=cache_bytes)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = cache.features(model, np.arange(len(TEXTS)))
        loss = loss_sum(model.head(features), LABELS)
    loss.backward()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held = sum(size for pointer, size in kept.items() if pointer not in weights)
    return {name: parameter.grad_sample for name, parameter in trained.items()}, held


@pytest.mark.parametrize("layers", [[], [-2, -1], [1]])
@pytest.mark.parametrize("cache_bytes", [CACHE_BYTES, 0], ids=["cached", "uncached"])
def test_gradients_per_record_are_those_without_it_and_counted_once(
    small_backbone: Path, layers: list[int], cache_bytes: int
) -> None:
    """Reference: the same backward pass with every activation kept. A layer whose second run were
    counted would raise LOR-404, or show doubled gradients here."""
    expected, much = gradients(make_plan(small_backbone, layers, on=False), cache_bytes)
    found, little = gradients(make_plan(small_backbone, layers, on=True), cache_bytes)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.abs().max() > 0, name
        scale = float(tensor.abs().max())
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6 * scale)
    assert little < much / 2


def test_nothing_is_computed_twice_where_no_gradient_is_asked_for(small_backbone: Path) -> None:
    """Runs of the last layer, counted."""
    plan = make_plan(small_backbone, [-1], on=True)
    backbone = load_backbone(plan.backbone)
    model = TextClassifier(backbone, plan).eval()
    runs = []
    layer = model.encoder.encoder.layer[-1].attention
    layer.register_forward_pre_hook(lambda *_: runs.append(1))
    ids = torch.tensor([[2, 20, 21, 3]])
    with torch.no_grad():
        model.features_of_ids(ids, torch.ones_like(ids))
    assert len(runs) == 1
    model.features_of_ids(ids, torch.ones_like(ids)).sum().backward()
    assert len(runs) == 3


def test_the_shared_backbone_keeps_its_own_forward_pass(small_backbone: Path) -> None:
    plan = make_plan(small_backbone, [], on=True)
    backbone = load_backbone(plan.backbone)
    TextClassifier(backbone, plan)
    assert not any("forward" in vars(module) for module in backbone.model.modules())


def test_an_encoder_without_a_list_of_layers_is_refused(small_backbone: Path) -> None:
    backbone = load_backbone(make_plan(small_backbone, [], on=False).backbone)
    lone = backbone.model.embeddings
    lone.config = backbone.model.config
    try:
        with pytest.raises(LoricaError) as caught:
            checkpoint_layers(lone, 0)
    finally:
        del lone.config
    assert caught.value.code is Code.BACKBONE_UNSUPPORTED
    assert "gradient_checkpointing" in caught.value.detail
