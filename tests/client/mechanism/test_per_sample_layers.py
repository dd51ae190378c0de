"""Per-record gradients of every family of models, all safe layers trained, against autograd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lorica.client.mechanism.independence import records_are_independent, require_independence
from lorica.client.mechanism.per_sample import enable_per_sample_gradients
from lorica.client.mechanism.per_sample_layers import has_rule
from lorica.common.backbone.batch_norm import FixedNorm, couples_records, replace_batch_norms
from lorica.common.backbone.loading import load_backbone
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.tasks import task_of
from tests.conftest import make_small_backbone
from tests.images import image_plan, make_image_backbone

TOLERANCE = 1e-5  # relative to a record's largest gradient entry
COUNT = 3
POSITIONS = ("position_embeddings", "wpe", "token_type_embeddings")  # read without a record


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=16,
        ),
        add_pooling_layer=False,
    )


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2Model

    return GPT2Model(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2))


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaModel

    return LlamaModel(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=16,
        )
    )


def vit() -> nn.Module:
    from transformers import ViTConfig, ViTModel

    return ViTModel(
        ViTConfig(
            image_size=16,
            patch_size=4,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
        ),
        add_pooling_layer=False,
    )


def convnext() -> nn.Module:
    from transformers import ConvNextConfig, ConvNextModel

    return ConvNextModel(
        ConvNextConfig(patch_size=2, num_stages=2, hidden_sizes=[8, 16], depths=[1, 1])
    )


def resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetModel

    model = ResNetModel(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="bottleneck")
    )
    assert replace_batch_norms(model, "group") > 0
    return model


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "bert": bert,
    "gpt2": gpt2,
    "llama": llama,
    "vit": vit,
    "convnext": convnext,
    "resnet": resnet,
}


def made(family: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FAMILIES[family]()
    if hasattr(model.config, "layer_scale_init_value"):  # 1e-6 would hide every other gradient
        for name, parameter in model.named_parameters():
            if "layer_scale" in name:
                parameter.data.fill_(0.5)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def inputs_of(family: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if family in ("vit", "convnext", "resnet"):
        return torch.randn(COUNT, 3, 16, 16, generator=generator)
    return torch.randint(1, 40, (COUNT, 7), generator=generator)


def losses(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """One number per record that weighs every state differently, shape (n,)."""
    output = model(x)
    states = output.last_hidden_state.flatten(1)
    if getattr(output, "pooler_output", None) is not None:  # ConvNeXt's last norm is in it alone
        states = torch.cat([states, output.pooler_output.flatten(1)], dim=1)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(states.shape[1], generator=generator) / states.shape[1] ** 0.5
    return (states @ weights).square() + states @ weights


def safe_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters of layers with a rule that read a record."""
    found = {}
    for name, module in model.named_modules():
        if name.endswith(POSITIONS) or (not isinstance(module, nn.Linear) and not has_rule(module)):
            continue
        found |= {f"{name}.{key}": p for key, p in module.named_parameters(recurse=False)}
    return found


def gradients(model: nn.Module, trained: dict[str, nn.Parameter], x: torch.Tensor) -> Any:
    for parameter in trained.values():
        parameter.grad_sample = None
    losses(model, x).sum().backward()
    return {name: parameter.grad_sample for name, parameter in trained.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_all_safe_layers_of_every_family_have_the_gradients_of_plain_autograd(family: str) -> None:
    """Full fine-tuning: against one backward pass for every record alone, on a model that nothing
    was enabled on."""
    model, reference = made(family), made(family)
    trained, x = safe_parameters(model), inputs_of(family)
    enable_per_sample_gradients(model, trained.values())
    found = gradients(model, trained, x)
    share = sum(p.numel() for p in trained.values()) / sum(p.numel() for p in model.parameters())
    assert share > 0.75, f"only {share:.0%} of the model was trained"
    kinds = {type(model.get_submodule(name.rpartition(".")[0])).__name__ for name in trained}
    assert kinds & {"LayerNorm", "GroupNorm", "LlamaRMSNorm", "ConvNextLayerNorm"}
    for row in range(COUNT):
        reference.zero_grad(set_to_none=True)
        losses(reference, x[row : row + 1]).sum().backward()
        single = {name: p.grad for name, p in reference.named_parameters() if name in trained}
        scale = max(float(gradient.abs().max()) for gradient in single.values())
        assert set(single) == set(found)
        for name, gradient in single.items():
            assert float((found[name][row] - gradient).abs().max()) <= TOLERANCE * scale, name
            assert bool(gradient.any()) or "key.bias" in name or "k_proj.bias" in name, name


@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_record_leaves_the_gradients_of_the_others_as_they_were(family: str) -> None:
    """An attack on the bound: one record made extreme."""
    model = made(family)
    trained, x = safe_parameters(model), inputs_of(family)
    enable_per_sample_gradients(model, trained.values())
    before = gradients(model, trained, x)
    changed = x.clone()
    changed[0] = 50 * x[0] if x.is_floating_point() else x[0].flip(0)
    after = gradients(model, trained, changed)
    moved = False
    for name, gradient in before.items():
        scale = float(gradient[1:].abs().max())
        assert float((gradient[1:] - after[name][1:]).abs().max()) <= 1e-5 * max(scale, 1e-3), name
        moved |= not torch.allclose(gradient[0], after[name][0])
    assert moved
    assert records_are_independent(lambda ids: model(ids).last_hidden_state, [x])


def test_batch_statistics_are_caught_by_the_attack_and_by_the_probe() -> None:
    """What the two tests above would miss if they could not fail."""
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    model = ResNetModel(config).train()
    x = inputs_of("resnet")
    states = lambda pixels: model(pixels).last_hidden_state  # noqa: E731
    assert not records_are_independent(states, [x])
    single = [losses(model, x[row : row + 1].clone()) for row in range(COUNT)]
    assert not torch.allclose(losses(model, x), torch.cat(single), rtol=1e-2)
    with pytest.raises(LoricaError, match=r"normali[sz]") as refused:
        enable_per_sample_gradients(model, [])
    assert "adapter.batch_norm" in str(refused.value.mend)


class Joined(nn.Module):
    """Couples records without any layer that a list could name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.inner(x)
        return found - found.mean(0)


def test_the_probe_catches_what_no_list_of_layers_names() -> None:
    model, x = Joined(), torch.randn(3, 4)
    enable_per_sample_gradients(model, model.parameters())  # no layer to refuse
    assert not records_are_independent(model, [x])
    assert records_are_independent(model.inner, [x])
    assert not records_are_independent(
        lambda ids: ids.float() - ids.float().mean(0), [torch.randint(0, 9, (3, 5))]
    )


@pytest.mark.parametrize("family", ["text", "vit", "convnext", "resnet"])
def test_a_model_of_an_unknown_kind_is_probed_with_made_up_records(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record of a site is looked at, so the refusal says nothing of one."""
    if family == "text":
        plan = RunPlan().replace(backbone={"source": str(make_small_backbone(tmp_path))})
        plan = plan.replace(task={"labels": ["left", "right"]})
    else:
        plan = image_plan(make_image_backbone(tmp_path, family))
    backbone = load_backbone(plan.backbone)
    model = task_of(plan).model(backbone).eval()

    def joined(*inputs: torch.Tensor) -> torch.Tensor:
        pooled = model.pooled_of_ids(*inputs)
        return pooled - pooled.mean(0)

    require_independence(joined, backbone)  # a kind whose gradients are tested is taken as it is
    monkeypatch.setattr("lorica.client.mechanism.independence.PROBED", frozenset())
    require_independence(model.pooled_of_ids, backbone)
    with pytest.raises(LoricaError, match=backbone.model.config.model_type) as refused:
        require_independence(joined, backbone)
    assert refused.value.code is Code.PRIVACY_UNSAFE_MODEL


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.SyncBatchNorm(4)])
def test_every_batch_norm_is_refused(layer: nn.Module) -> None:
    assert couples_records(layer)
    with pytest.raises(LoricaError):
        enable_per_sample_gradients(nn.Sequential(layer), [])


def test_a_fixed_norm_equals_the_batch_norm_in_use_even_while_training() -> None:
    """Against torch's own batch norm in eval mode; in train mode the statistics stay."""
    norm = nn.BatchNorm2d(6)
    x = torch.randn(5, 6, 3, 3) * 4 + 2
    for _ in range(3):
        norm(x)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    fixed = FixedNorm(norm).train()
    torch.testing.assert_close(fixed(x), norm.eval()(x))
    assert records_are_independent(fixed, [x])
    model = nn.Sequential(nn.Conv2d(3, 6, 1), norm)
    with pytest.raises(LoricaError, match="couples"):
        replace_batch_norms(model, "refuse")
    assert replace_batch_norms(model, "fixed") == 1 and isinstance(model[1], FixedNorm)


def test_a_watched_layer_that_runs_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.norm(x) * 2)

    model = Twice()
    enable_per_sample_gradients(model, model.parameters())
    with pytest.raises(LoricaError, match="twice"):
        model(torch.randn(2, 4)).square().sum().backward()


def test_parameters_of_two_layers_and_of_none_are_refused() -> None:
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(LoricaError, match="share a parameter"):
        enable_per_sample_gradients(tied, [tied[0].weight])

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.scale = nn.Parameter(torch.ones(4))

    with pytest.raises(LoricaError, match="no per-record gradient") as refused:
        enable_per_sample_gradients(model := Scaled(), [model.scale])
    assert "frozen" in str(refused.value.mend)


def test_a_layer_read_without_a_record_is_refused() -> None:
    """Position embeddings have a batch of 1 whatever the batch."""
    model = made("bert")
    positions = model.embeddings.position_embeddings
    enable_per_sample_gradients(model, positions.parameters())
    losses(model, inputs_of("bert")).sum().backward()
    assert len(positions.weight.grad_sample) == 1  # DPTrainer refuses it by its length


class OwnLinear(nn.Linear):
    """A linear layer that does something else in its forward pass."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(2 * input)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, padding=1, stride=2), (4, 9)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 6, 5)),
        (nn.Conv2d(4, 6, 3, padding="same", dilation=2), (4, 6, 5)),
        (nn.GroupNorm(2, 4), (4, 6)),
        (nn.RMSNorm(6), (4, 6)),
        (nn.LayerNorm([4, 6]), (4, 6)),
        (nn.InstanceNorm1d(4, affine=True), (4, 6)),
        (nn.PReLU(4), (4, 6)),
        (OwnLinear(6, 3), (4, 6)),
        (nn.Bilinear(6, 6, 2), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_single_layers_equal_autograd_or_refuse(layer: nn.Module, shape: Any) -> None:
    """Opacus' rules, and layers without one."""
    enable_per_sample_gradients(layer, layer.parameters())
    if shape is None:
        with pytest.raises(LoricaError, match="one tensor"):
            layer(torch.randn(3, 6), torch.randn(3, 6))
        return
    x = torch.randn(5, *shape)
    layer(x).pow(3).sum().backward()
    found = {name: p.grad_sample.clone() for name, p in layer.named_parameters()}
    for row in range(len(x)):
        layer.zero_grad(set_to_none=True)
        for parameter in layer.parameters():
            parameter.grad_sample = None
        layer(x[row : row + 1]).pow(3).sum().backward()
        for name, parameter in layer.named_parameters():
            torch.testing.assert_close(found[name][row], parameter.grad, rtol=1e-4, atol=1e-4)
