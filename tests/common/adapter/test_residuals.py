"""Residual weights: added beside the backbone, saved as LoRA of a higher rank."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from lorica.common.adapter.residuals import narrowed, widened
from lorica.common.adapter.state import State
from lorica.common.backbone.loading import Backbone, load_backbone
from lorica.common.plan import RunPlan
from lorica.common.plan.tensors import Part, factor_pairs, part_of, residual_name
from lorica.common.tasks.text_classification import TextClassifier, collate, encode

TEXTS = ["my card is lost", "fever", "the doctor was very tired today again my heart has pain"]


def fedex(folder: Path, **adapter: object) -> RunPlan:
    return RunPlan().replace(
        backbone={"source": str(folder)},
        task={"labels": ["money", "health", "street"]},
        adapter={"rank": 3, "alpha": 4.5, "layers": [1, 2], **adapter},
        training={"mode": "local"},
        aggregation={"method": "fedex"},
    )


def random_state(backbone: Backbone, plan: RunPlan, seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    parameters = TextClassifier(backbone, plan).adapter_parameters
    return {n: 0.3 * torch.randn(p.shape, generator=generator) for n, p in parameters.items()}


def pooled(classifier: TextClassifier, backbone: Backbone) -> torch.Tensor:
    with torch.no_grad():
        return classifier.pooled_of_ids(*collate(encode(backbone, TEXTS, 64), range(3)))


def test_the_adapted_weight_is_the_backbones_with_residual_and_product(
    small_backbone: Path,
) -> None:
    """Against a plain encoder whose weights were changed by hand."""
    plan = fedex(small_backbone)
    backbone = load_backbone(plan.backbone)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    state = random_state(backbone, plan)
    classifier = TextClassifier(backbone, plan).eval()
    classifier.load_state(state)
    found = pooled(classifier, backbone)
    ids, mask = collate(encode(backbone, TEXTS, 64), range(3))
    by_prefix = classifier.pooled(classifier.prefix.hidden(ids, mask), mask)
    assert all(torch.equal(t, before[n]) for n, t in backbone.model.state_dict().items())

    plain = TextClassifier(backbone, plan.replace(adapter={"kind": "head"})).eval()
    changed = {name: tensor.clone() for name, tensor in before.items()}
    for path, (name_a, name_b) in factor_pairs(state).items():
        name = f"{path.removeprefix('base_model.model.')}.weight"
        changed[name] += 1.5 * (state[residual_name(path)] + state[name_b] @ state[name_a])
    own = copy.deepcopy(backbone.model)
    own.load_state_dict(changed)
    plain.encoder = own
    reference = pooled(plain, backbone)
    assert torch.allclose(found, reference, atol=1e-5)
    assert torch.allclose(by_prefix, reference, atol=1e-5)
    assert (
        float((pooled(TextClassifier(backbone, plan).eval(), backbone) - found).abs().max()) > 0.01
    )


def test_models_on_one_backbone_have_residuals_of_their_own(small_backbone: Path) -> None:
    plan = fedex(small_backbone)
    backbone = load_backbone(plan.backbone)
    one, two = (TextClassifier(backbone, plan).eval() for _ in range(2))
    one.load_state(random_state(backbone, plan, 1))
    before = pooled(one, backbone)
    two.load_state(random_state(backbone, plan, 2))
    assert torch.equal(pooled(one, backbone), before)
    assert not torch.allclose(pooled(two, backbone), before)


def test_a_model_with_a_residual_is_not_idle_until_it_is_made_so(small_backbone: Path) -> None:
    plan = fedex(small_backbone)
    backbone = load_backbone(plan.backbone)
    classifier = TextClassifier(backbone, plan).eval()
    assert classifier.idle
    idle = pooled(classifier, backbone)
    state = random_state(backbone, plan)
    for name in state:
        if part_of(name) is Part.B:
            state[name] = torch.zeros_like(state[name])
    classifier.load_state(state)
    assert not classifier.idle
    classifier.load_head({n: t for n, t in state.items() if n.startswith("head.")})
    assert classifier.idle
    assert torch.equal(pooled(classifier, backbone), idle)


def test_loading_twice_adds_the_residual_once(small_backbone: Path) -> None:
    plan = fedex(small_backbone)
    backbone = load_backbone(plan.backbone)
    classifier, state = TextClassifier(backbone, plan).eval(), random_state(backbone, plan)
    classifier.load_state(state)
    first = pooled(classifier, backbone)
    classifier.load_state(state)
    assert torch.equal(pooled(classifier, backbone), first)
    assert all(torch.equal(t, state[n]) for n, t in classifier.adapter_state().items())


@pytest.mark.parametrize("rank_of_residual", [0, 2, 32])
def test_wide_factors_hold_the_same_weights_and_give_back_the_narrow_ones(
    small_backbone: Path, rank_of_residual: int
) -> None:
    plan = fedex(small_backbone)
    state = random_state(load_backbone(plan.backbone), plan)
    lora = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    for path in factor_pairs(lora):
        u, s, v_t = torch.linalg.svd(lora[residual_name(path)])
        s[rank_of_residual:] = 0.0
        lora[residual_name(path)] = (u * s) @ v_t
    wide, adapter = widened(lora, plan.adapter)
    assert adapter.rank == 3 + rank_of_residual
    assert adapter.alpha / adapter.rank == pytest.approx(plan.adapter.alpha / plan.adapter.rank)
    for path, (name_a, name_b) in factor_pairs(lora).items():
        expected = lora[name_b] @ lora[name_a] + lora[residual_name(path)]
        assert torch.allclose(wide[name_b] @ wide[name_a], expected, atol=1e-5)
    back = narrowed(wide, plan.adapter)
    assert set(back) == set(lora)
    for name, tensor in lora.items():
        if part_of(name) is Part.RESIDUAL:
            assert torch.allclose(back[name], tensor, atol=1e-6)
        else:
            assert torch.equal(back[name], tensor)
