"""An adapter made ready for use: the same answers as trained, in fewer batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lorica.common.backbone.precision import has_bf16
from lorica.common.cache.batching import BATCH_OVERHEAD
from lorica.common.cache.prefix import PrefixCache, predict_logits
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.course import Precision
from lorica.common.saved.exported.folded import adapted_model
from lorica.common.saved.folder import load_adapter
from lorica.common.saved.predict import Predictor, record_of
from lorica.common.saved.ready import ready_model, use_batches
from lorica.common.tasks.shapes import padded
from tests.saved_adapters import random_adapter

TEXTS = ["my card is lost", "fever", "the doctor was very tired today again my heart has pain"] * 5


@pytest.fixture
def adapter(tmp_path: Path, small_backbone: Path) -> Path:
    return random_adapter(tmp_path / "adapter", small_backbone, ["a", "b", "c"], center=0.02)


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=60),
    st.integers(8, 2048),
    st.integers(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_every_record_is_in_one_batch_within_the_budget(
    lengths: list[int], budget: int, kinds: int
) -> None:
    sizes = np.stack([lengths, [1 + 20 * (kinds * row % 2) for row in range(len(lengths))]], 1)
    batches = list(use_batches(sizes, 300, budget))
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    for rows in batches:
        width = int(padded(sizes[rows, 0].max(), 300))
        assert len(rows) == 1 or len(rows) * width <= budget
        assert len(set(sizes[rows, 1].tolist())) == 1


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30))
@settings(max_examples=40, deadline=None)
def test_batches_cost_no_more_than_one_for_all_or_one_for_each_length(lengths: list[int]) -> None:
    sizes = np.array(lengths)[:, None]
    wide = padded(sizes[:, 0], 64)

    def cost(batches: list[np.ndarray]) -> int:
        return sum(len(rows) * int(wide[rows].max()) + BATCH_OVERHEAD for rows in batches)

    found = cost(list(use_batches(sizes, 64)))
    assert found <= cost([np.arange(len(lengths))])
    assert found <= cost([np.flatnonzero(wide == width) for width in np.unique(wide)])


def test_answers_are_those_of_the_model_as_it_was_trained(adapter: Path) -> None:
    """Reference: LoRA factors beside the weights, in the canonical batches of training."""
    saved = load_adapter(adapter)
    backbone = saved.backbone()
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    task, model = adapted_model(saved, backbone)
    encoded = [task.encode(backbone, record_of(saved.plan, text, {})) for text in TEXTS]
    logits = [predict_logits(model, PrefixCache(model, one)) for one in encoded]  # type: ignore[arg-type]
    wanted = torch.softmax(torch.cat(logits), 1)
    found = Predictor(adapter)(TEXTS)
    got = torch.tensor([answer.probabilities for answer in found])  # type: ignore[attr-defined]
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5)
    ready = ready_model(saved, backbone).model
    assert not [name for name, _ in ready.encoder.named_modules() if "lora" in name]
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, before[name]), name  # merging changed nothing of it


def test_bfloat16_is_near_and_refused_where_there_are_no_units(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = Predictor(adapter)(TEXTS)
    if has_bf16():
        near = Predictor(adapter, precision="bf16")(TEXTS)
        for one, other in zip(near, exact, strict=True):
            assert one.probabilities == pytest.approx(other.probabilities, abs=0.1)  # type: ignore[attr-defined]
        assert near != exact
    monkeypatch.setattr("lorica.common.backbone.precision.has_bf16", lambda *_: False)
    wanted: Precision = "bf16"
    with pytest.raises(LoricaError) as caught:
        Predictor(adapter, precision=wanted)
    assert caught.value.code is Code.HARDWARE_MISSING
    assert Predictor(adapter, precision="auto")(TEXTS) == exact


@pytest.mark.parametrize("file", ["head.safetensors", "adapter_model.safetensors"])
def test_tensors_that_do_not_fit_are_refused(adapter: Path, file: str) -> None:
    held = load_file(adapter / file)
    name = max(held, key=lambda key: held[key].numel())
    save_file({**held, name: torch.zeros(5, 7)}, adapter / file)
    with pytest.raises(LoricaError) as caught:
        Predictor(adapter)
    assert caught.value.code is Code.ADAPTER_MISMATCH
    del held[name]
    save_file(held, adapter / file)
    with pytest.raises(LoricaError):
        Predictor(adapter)
