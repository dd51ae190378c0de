"""BitFit: biases are trained record by record, travel and are averaged; the backbone is not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from rich.console import Console
from torch import nn

from lorica.client.mechanism.per_sample import enable_per_sample_gradients
from lorica.common.adapter.state import State
from lorica.common.backbone.loading import load_backbone
from lorica.common.cache.prefix import CACHE_BYTES, PrefixCache
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import METHODS, methods_with
from lorica.common.plan.stages import Stage, returned, sent, stage_of, trained
from lorica.common.plan.tensors import Part, part_of
from lorica.common.saved.folder import load_adapter
from lorica.common.tasks.classes import loss_sum
from lorica.common.tasks.text_classification import (
    TextClassifier,
    collate,
    encode,
    starting_state,
)
from lorica.server.aggregation import aggregator
from lorica.server.results.folder import RunFolder
from lorica.simulations.run.simulate import Simulation
from tests.tasks import plan_of, rows_of, write_rows

TEXTS = ["card lost", "fever and pain again", "my heart", "the doctor was very tired today"]
LABELS = torch.tensor([0, 1, 1, 0])


def make_plan(backbone: Path, layers: list[int]) -> RunPlan:
    return RunPlan().replace(
        backbone={"source": str(backbone)},
        task={"labels": ["money", "health"]},
        adapter={"kind": "bitfit", "layers": layers},
    )


def biases_of(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if part_of(name) is Part.BIAS}


@pytest.mark.parametrize("layers", [[], [-1], [0, 2]])
def test_the_adapter_is_the_bias_of_every_linear_module_of_the_layers(
    small_backbone: Path, layers: list[int]
) -> None:
    """By a walk through the backbone's own modules."""
    plan = make_plan(small_backbone, layers)
    backbone = load_backbone(plan.backbone)
    chosen = {index % 3 for index in layers} or {0, 1, 2}
    expected = {
        f"{name}.bias": module.bias
        for name, module in backbone.model.named_modules()
        if isinstance(module, nn.Linear)
        and any(name.startswith(f"encoder.layer.{index}.") for index in chosen)
    }
    model = TextClassifier(backbone, plan)
    start = starting_state(model, backbone, plan)
    assert biases_of(start).keys() == expected.keys()
    assert all(torch.equal(start[name], bias) for name, bias in expected.items())
    assert model.prefix.depth == min(chosen)
    assert model.idle


@pytest.mark.parametrize("cache_bytes", [CACHE_BYTES, 0], ids=["cached", "uncached"])
@pytest.mark.parametrize("layers", [[], [-1]])
def test_gradients_equal_single_record_backward_passes(
    small_backbone: Path, layers: list[int], cache_bytes: int
) -> None:
    """Against plain autograd on the backbone's own biases, one unpadded record at a time."""
    plan = make_plan(small_backbone, layers)
    backbone = load_backbone(plan.backbone)
    reference, model = TextClassifier(backbone, plan), TextClassifier(backbone, plan).eval()
    start = starting_state(model, backbone, plan)
    reference.load_state(start)
    parameters = {n: p for n, p in model.adapter_parameters.items() if n != "head.center"}
    plain = {n: p.requires_grad_() for n, p in reference.adapter_parameters.items()}
    enable_per_sample_gradients(model, parameters.values())
    model.load_state(start)
    assert not model.still
    encoded = encode(backbone, TEXTS, 64)
    cache = PrefixCache(model, encoded, limit_bytes=cache_bytes)
    loss_sum(model.head(cache.features(model, np.arange(len(TEXTS)))), LABELS).backward()
    for row in range(len(TEXTS)):
        reference.zero_grad(set_to_none=True)
        logits = reference.head(reference.features_of_ids(*collate(encoded, [row])))
        loss_sum(logits, LABELS[row : row + 1]).backward()
        largest = max(float(plain[name].grad.abs().max()) for name in biases_of(start))
        assert largest > 0
        for name, parameter in parameters.items():
            difference = (parameter.grad_sample[row] - plain[name].grad).abs().max()
            assert float(difference) < 1e-5 * max(largest, float(plain[name].grad.abs().max()))


def test_the_shared_backbone_is_never_written(small_backbone: Path) -> None:
    plan = make_plan(small_backbone, [-1])
    backbone = load_backbone(plan.backbone)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    model = TextClassifier(backbone, plan)
    start = starting_state(model, backbone, plan)
    moved = start | {name: tensor + 1 for name, tensor in biases_of(start).items()}
    model.load_state(moved)
    assert not model.idle
    ids = torch.tensor([[2, 20, 21, 3]])
    other = TextClassifier(backbone, plan)
    mask = torch.ones_like(ids)
    assert not torch.allclose(model.pooled_of_ids(ids, mask), other.pooled_of_ids(ids, mask))
    after = backbone.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    model.load_head({n: t for n, t in start.items() if n.startswith("head.")})
    assert model.idle
    assert torch.equal(model.pooled_of_ids(ids, mask), other.pooled_of_ids(ids, mask))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_methods_that_work_on_factors_alone_are_refused(small_backbone: Path, method: str) -> None:
    def chosen() -> RunPlan:
        plan = make_plan(small_backbone, [-1])
        return plan.replace(aggregation={"method": method}, training={"mode": "local"})

    if METHODS[method].averages_biases:
        assert chosen().aggregation.method == method
        return
    with pytest.raises(ValidationError, match="bitfit"):
        chosen()


@pytest.mark.parametrize("method", methods_with(lambda method: method.averages_biases))
def test_every_admitted_method_gives_the_weighted_mean_of_the_sites_biases(method: str) -> None:
    """By hand: weights 1 and 3."""
    start = {"encoder.layer.0.output.dense.bias": torch.zeros(3), "head.weight": torch.zeros(2, 3)}
    rule = aggregator(method, start)
    one = {name: torch.full_like(tensor, 4.0) for name, tensor in start.items()}
    rule.add(one, 1.0)
    rule.add({name: torch.full_like(tensor, 8.0) for name, tensor in start.items()}, 3.0)
    for tensor in rule.finish().values():
        assert torch.equal(tensor, torch.full_like(tensor, 7.0))


def test_biases_travel_in_the_rounds_that_train_them_alone(small_backbone: Path) -> None:
    plan = make_plan(small_backbone, [-1]).replace(
        training={"lora": "always", "lora_rounds": 2}, rounds={"count": 5, "warm_start": 0.4}
    )
    backbone = load_backbone(plan.backbone)
    names = list(starting_state(TextClassifier(backbone, plan), backbone, plan))
    for round in range(1, 6):
        adapts = stage_of(plan, round) is Stage.LORA
        assert adapts == (round > 3)
        for moving in (trained, returned, sent):
            parts = {part_of(name) for name in moving(plan, round, names)}
            assert (Part.BIAS in parts) == adapts


@pytest.mark.parametrize("mode", ["gradient", "local"])
def test_a_run_moves_the_biases_and_no_honest_update_is_refused(
    small_backbone: Path, tmp_path: Path, mode: str
) -> None:
    """Three sites at epsilon 8."""
    kind = "text-classification"
    data = write_rows(tmp_path / "data.jsonl", rows_of(kind, 90))
    plan = plan_of(
        kind,
        small_backbone,
        data,
        adapter={"kind": "bitfit", "layers": [-1]},
        training={
            "mode": mode,
            "lora": "always",
            "lora_rounds": 2,
            "local_steps": 2,
            "expected_batch_size": 16,
        },
        rounds={"count": 4},
    )
    Simulation(plan, tmp_path / "run", Console(file=io.StringIO())).run()
    for record in RunFolder(tmp_path / "run").rounds()[1:]:
        assert [site.status for site in record.sites] == ["ok"] * 3, record.sites
    saved = load_adapter(tmp_path / "run" / "adapter")
    shared = load_backbone(plan.backbone).model.state_dict()
    biases = biases_of(saved.state)
    assert len(biases) == 6
    assert any(not torch.equal(tensor, shared[name]) for name, tensor in biases.items())


def test_layers_without_a_bias_are_refused(small_backbone: Path) -> None:
    from lorica.common.adapter.biases import OwnBiases
    from lorica.common.adapter.lora import structural_copy

    encoder = structural_copy(load_backbone(make_plan(small_backbone, []).backbone).model)
    for module in encoder.modules():
        if isinstance(module, nn.Linear):
            module.bias = None
    with pytest.raises(LoricaError) as caught:
        OwnBiases(encoder, [0, 1])
    assert caught.value.code is Code.BACKBONE_UNSUPPORTED
