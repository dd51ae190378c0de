"""Backbones in 8 or 4 bits: the formats, what they cost and save, what cannot be asked of them."""

from __future__ import annotations

import builtins
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from lorica.common.backbone.loading import Backbone, load_backbone
from lorica.common.backbone.quantised import QuantisedLinear, quantise, weight_bytes
from lorica.common.cache.shelf import CacheShelf
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.saved.exported.merged import export_merged
from lorica.common.saved.folder import load_adapter, save_adapter
from lorica.common.saved.predict import Predictor
from lorica.common.tasks import task_of
from lorica.common.tasks.text_classification import TextClassifier, encode, starting_state
from tests.images import make_image_backbone
from tests.language_models import TARGETS, make_language_model
from tests.rounded import rounded

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

Refuses = Callable[[Code, Callable[[], object]], str]
TEXTS = ["card lost", "fever and pain again", "my heart", "the doctor was very tired today"]


def plan_of(source: object, number: str, **sections: Any) -> RunPlan:
    plan = RunPlan().replace(
        backbone={"source": str(source), "quantize": number},
        task={"labels": ["money", "health"]},
        adapter={"layers": []},
    )
    return plan.replace(**sections)


def loaded(source: object, number: str) -> Backbone:
    return load_backbone(plan_of(source, number).backbone)


@pytest.mark.parametrize("number", ["int8", "int4"])
@pytest.mark.parametrize("shape", [(33, 64), (5, 7), (64, 96), (3, 130)])
def test_weights_are_rounded_to_the_nearest_code(number: Any, shape: tuple[int, int]) -> None:
    """Against a numpy reference; a row of zeros stays one."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weight[1] = 0.0
    found = QuantisedLinear(weight, None, number).dequantised()
    np.testing.assert_allclose(found, rounded(weight.numpy(), number), rtol=0, atol=1e-6)
    assert found.shape == shape and found.dtype == torch.float32


@pytest.mark.parametrize("number", ["int8", "int4"])
def test_product_and_gradient_are_those_of_the_rounded_weights(number: Any) -> None:
    """Against a plain linear layer of the numpy reference, by plain autograd."""
    generator = torch.Generator().manual_seed(2)
    weight, bias = torch.randn(48, 64, generator=generator), torch.randn(48, generator=generator)
    layer = QuantisedLinear(weight, bias, number)
    plain = nn.Linear(64, 48).requires_grad_(False)
    plain.weight.copy_(torch.from_numpy(rounded(weight.numpy(), number)))
    plain.bias.copy_(bias)
    x = torch.randn(5, 3, 64, generator=generator)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, wanted = layer(ours), plain(theirs)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-4)
    assert layer.weight.grad is None and not layer.weight.requires_grad


@pytest.mark.parametrize(
    ("number", "most"), [("int8", 1 + 4 / 32 + 0.01), ("int4", 0.5 + 1 / 16 + 0.01)]
)
def test_linear_weights_take_the_bytes_that_the_docstring_says(
    small_backbone: Path, number: str, most: float
) -> None:
    whole, small = loaded(small_backbone, "none"), loaded(small_backbone, number)
    linear = [m for m in whole.model.modules() if isinstance(m, nn.Linear)]
    count = sum(module.weight.numel() for module in linear)
    saved = weight_bytes(whole.model) - weight_bytes(small.model)
    assert saved >= (4 - most) * count
    kept = [m for m in small.model.modules() if isinstance(m, QuantisedLinear)]
    assert len(kept) == len(linear)
    assert not any(p.requires_grad for p in small.model.parameters())


def test_number_formats_are_models_of_their_own(small_backbone: Path) -> None:
    """Loaded apart, each once; the shelf of caches never mixes them; the plan's hash differs."""
    found = {number: loaded(small_backbone, number) for number in ("none", "int8", "int4")}
    assert len({backbone.identity for backbone in found.values()}) == 3
    assert len({backbone.sha256 for backbone in found.values()}) == 1
    assert loaded(small_backbone, "int8") is found["int8"]
    prints = {plan_of(small_backbone, number).fingerprint for number in found}
    assert len(prints) == 3
    shelf, features = CacheShelf(), {}
    for number, backbone in found.items():
        plan = plan_of(small_backbone, number)
        model = TextClassifier(backbone, plan)
        model.load_state(starting_state(model, backbone, plan))
        cache = shelf.get(model, encode(backbone, TEXTS, 64), backbone=backbone)
        features[number] = cache.features(model, np.arange(len(TEXTS)))
    for number in ("int8", "int4"):
        distance = float((features[number] - features["none"]).detach().abs().max())
        assert 1e-6 < distance < 0.3, (number, distance)


def test_loading_twice_gives_the_same_codes(small_backbone: Path) -> None:
    first = loaded(small_backbone, "int4").model.state_dict()
    load_backbone.__globals__["_load"].cache_clear()  # as in another process
    second = loaded(small_backbone, "int4").model.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("method", ["fedex", "flora"])
def test_methods_that_write_into_the_weights_are_refused(method: str) -> None:
    with pytest.raises(ValidationError, match=f'"{method}" adds residuals.*"int8"'):
        plan_of("x", "int8", aggregation={"method": method}, training={"mode": "local"})


def test_bitfit_is_refused() -> None:
    with pytest.raises(ValidationError, match=r'freezes linear layers whole.*"bitfit"'):
        plan_of("x", "int4", adapter={"kind": "bitfit"})


def test_a_network_without_linear_layers_is_refused(refuses: Refuses) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    detail = refuses(Code.BACKBONE_UNSUPPORTED, lambda: quantise(model, "int8"))
    assert "no linear layer" in detail


def test_a_missing_package_is_named_with_its_extra(
    small_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("bitsandbytes"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [n for n in sys.modules if n.startswith("bitsandbytes")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LoricaError) as caught:
        loaded(small_backbone, "int8")
    assert caught.value.code is Code.PACKAGE_MISSING
    assert "lorica[quantised]" in caught.value.mend


@pytest.mark.parametrize("number", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_language_models_keep_their_own_head(tmp_path: Path, kind: str, number: str) -> None:
    """GPT-2 keeps its weights as (in, out); its head is the input embeddings."""
    folder = make_language_model(tmp_path / kind, kind)
    task = "masked-lm" if kind == "bert" else "causal-lm"
    plan = RunPlan().replace(
        backbone={"source": str(folder), "quantize": number},
        task={"kind": task},
        adapter={"target_modules": TARGETS[kind], "layers": []},
    )
    backbone = load_backbone(plan.backbone)
    assert any(isinstance(module, QuantisedLinear) for module in backbone.model.modules())
    model = task_of(plan).model(backbone)
    ids = torch.arange(4)[None] + 10
    states = model.encoder(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    reference = _plain(folder, number)
    with torch.no_grad():
        wanted = reference(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    torch.testing.assert_close(states, wanted, rtol=0, atol=1e-5)


def _plain(folder: Path, number: str) -> Any:
    """Plain transformers, its linear weights replaced by the numpy reference's."""
    from transformers import AutoModel
    from transformers.pytorch_utils import Conv1D

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            new = rounded(module.weight.detach().numpy(), number)
            module.weight.data = torch.from_numpy(new)
        elif isinstance(module, Conv1D):
            new = rounded(np.ascontiguousarray(module.weight.detach().numpy().T), number)
            module.weight.data = torch.from_numpy(np.ascontiguousarray(new.T))
    return model


def trained_state(backbone: Backbone, plan: RunPlan) -> dict[str, torch.Tensor]:
    task = task_of(plan)
    model = task.model(backbone)
    generator = torch.Generator().manual_seed(4)
    return {
        name: 0.3 * torch.randn(p.shape, generator=generator)
        for name, p in model.adapter_parameters.items()
    }


@pytest.mark.parametrize("number", ["int8", "int4"])
def test_the_adapters_folder_says_the_format_and_predicts_in_it(
    small_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    """The README's code, with plain transformers and peft, gives the predictor's answers."""
    import re

    plan = plan_of(small_backbone, number)
    backbone = load_backbone(plan.backbone)
    folder = tmp_path / "adapter"
    save_adapter(folder, trained_state(backbone, plan), plan, backbone)
    about = json.loads((folder / "lorica.json").read_text(encoding="utf-8"))
    assert about["backbone"]["quantize"] == number
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert f"its linear weights rounded to {number}" in readme
    (code,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(code.replace('["some text"]', repr(TEXTS)), found)
    answers = Predictor(folder)(TEXTS)
    reference = torch.tensor([answer.probabilities for answer in answers])
    torch.testing.assert_close(torch.softmax(found["outputs"], 1), reference, rtol=0, atol=1e-5)
    assert load_adapter(folder).plan.backbone.quantize == number


@pytest.mark.parametrize("number", ["int8", "int4"])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_an_exported_backbone_computes_what_the_run_trained(
    tmp_path: Path, kind: str, number: str
) -> None:
    """Plain transformers on the folder against the adapted model of the run, whose weights are
    rounded; against the original weights it is off."""
    from transformers import AutoModel

    source = make_language_model(tmp_path / kind, kind)
    plan = RunPlan().replace(
        backbone={"source": str(source), "quantize": number},
        task={"kind": "masked-lm" if kind == "bert" else "causal-lm"},
        adapter={"target_modules": TARGETS[kind], "layers": []},
    )
    backbone = load_backbone(plan.backbone)
    state = trained_state(backbone, plan)
    save_adapter(tmp_path / "adapter", state, plan, backbone)
    merged = export_merged(tmp_path / "adapter", tmp_path / "merged")
    assert merged.rounded > merged.changed > 0
    assert f"in {number}" in (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    model = task_of(plan).model(backbone)
    model.load_state(state)
    ids = torch.arange(6)[None] + 8
    mask = torch.ones_like(ids)
    plain = AutoModel.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        found = plain(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
    again = load_backbone(plan.replace(backbone={"source": str(merged.folder)}).backbone)
    assert again.quantize == number  # the next run may round anew, of its own plan


def test_an_image_model_is_rounded_as_well(tmp_path: Path) -> None:
    folder = make_image_backbone(tmp_path / "vit", "vit")
    backbone = loaded(folder, "int8")
    assert any(isinstance(module, QuantisedLinear) for module in backbone.model.modules())
