"""bfloat16 encoders: what stays float32, that clipping holds, and how near the gradients are.

torch computes bfloat16 on every processor, on most of them slowly: the tests say that there are
units for it.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lorica.client.mechanism.dp_sgd import NoisyOptimizer
from lorica.client.mechanism.noise import NoiseSource, SeededNoise
from lorica.client.mechanism.per_sample import enable_per_sample_gradients
from lorica.client.training.models import build
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import State, pack_state, unpack_state
from lorica.common.backbone import precision
from lorica.common.backbone.loading import load_backbone
from lorica.common.backbone.precision import number_format
from lorica.common.cache.prefix import PrefixCache, judgements
from lorica.common.cache.shelf import CacheShelf
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import sent
from lorica.common.saved.folder import save_adapter
from lorica.common.saved.predict import Predictor
from lorica.common.tasks import task_of
from lorica.common.tasks.inputs import encode
from lorica.common.tasks.text_classification import TextClassifier, starting_state
from lorica.common.wire.messages import Request

WORDS = ["card", "cash", "fever", "pain", "heart", "skin", "cough", "lost", "new", "money", "my"]
BF16_ERROR = 0.05
"""Largest error of a gradient that is computed with 8 bits of mantissa through three layers, as a
share of its norm; a wrong gradient is off by about 1."""


@pytest.fixture
def units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device="cpu": True)


@pytest.fixture
def plan(small_backbone: Path) -> RunPlan:
    return RunPlan().replace(
        backbone={"source": str(small_backbone)},
        task={"labels": ["health", "money"]},
        adapter={"rank": 4, "layers": [1, 2]},
        privacy={"epsilon": float("inf"), "delta": 1e-3},
        training={"mode": "local", "expected_batch_size": 16, "local_steps": 3},
        rounds={"count": 2, "warm_start": 0},
    )


def in_bf16(plan: RunPlan) -> RunPlan:
    return plan.replace(training={"precision": "bf16"})


def records(count: int = 40) -> Records:
    generator = random.Random(5)
    texts = [" ".join(generator.choices(WORDS, k=3 + i % 7)) for i in range(count)]
    labels = ["money" if "a" in text.split()[0] else "health" for text in texts]
    return Records(texts, labels, [str(row) for row in range(count)], [""] * count)


def moved(plan: RunPlan) -> State:
    """A start with every B away from 0, so that A has a gradient, too."""
    backbone = load_backbone(plan.backbone)
    state = starting_state(TextClassifier(backbone, plan), backbone, plan)
    generator = torch.Generator().manual_seed(3)
    for name, tensor in state.items():
        if ".lora_B." in name:
            state[name] = 0.1 * torch.randn(tensor.shape, generator=generator)
    return state


def gradients(plan: RunPlan, rows: list[int]) -> dict[str, nn.Parameter]:
    """The trained parameters with ``grad_sample`` of these records."""
    backbone = load_backbone(plan.backbone)
    model = TextClassifier(backbone, plan).eval()
    model.load_state(moved(plan))
    trained = {n: p for n, p in model.adapter_parameters.items() if n != "head.center"}
    enable_per_sample_gradients(model, trained.values())
    encoded = encode(backbone, records().texts, 32)
    logits = model.head(model.features_of_ids(*encoded.collate(rows)))
    targets = torch.tensor([row % 2 for row in rows])
    nn.functional.cross_entropy(logits, targets, reduction="sum").backward()
    return trained


def flat(trained: dict[str, nn.Parameter]) -> torch.Tensor:
    return torch.cat([p.grad_sample.double().flatten(1) for p in trained.values()], dim=1)  # type: ignore[attr-defined]


def test_bf16_is_refused_where_no_unit_computes_it(
    plan: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "has_bf16", lambda device="cpu": False)
    assert number_format("auto") == number_format("float32") == torch.float32
    site = LocalTrainer("a", records(), noise=lambda run, round: SeededNoise(run, round))
    with pytest.raises(LoricaError, match="no bfloat16 units") as caught:
        site.capabilities(Request(in_bf16(plan), "r"))
    assert caught.value.code is Code.HARDWARE_MISSING
    site.capabilities(Request(plan.replace(training={"precision": "auto"}), "r"))


def test_auto_is_bf16_where_a_unit_computes_it(units: None) -> None:
    assert number_format("auto") == number_format("bf16") == torch.bfloat16
    assert number_format("float32") == torch.float32


def test_the_encoder_computes_in_bf16_and_nothing_after_it(units: None, plan: RunPlan) -> None:
    backbone = load_backbone(plan.backbone)
    model = TextClassifier(backbone, in_bf16(plan)).eval()
    seen: list[torch.dtype] = []
    for name, module in model.encoder.named_modules():
        if isinstance(module, nn.Linear) and "lora" in name:
            module.register_forward_hook(lambda m, given, output: seen.append(output.dtype))
    ids = encode(backbone, records().texts, 32).collate([0, 1])
    with torch.no_grad():
        features = model.features_of_ids(*ids)
        assert model.hidden_of_ids(*ids).dtype == torch.float32
    assert seen and set(seen) == {torch.bfloat16}
    assert features.dtype == model.head(features).dtype == torch.float32
    assert {p.dtype for p in model.adapter_parameters.values()} == {torch.float32}


def test_attention_computes_in_float32_also_when_it_is_computed_anew(
    units: None, plan: RunPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    attention, seen = nn.functional.scaled_dot_product_attention, []

    class Watched(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            output = func(*args, **(kwargs or {}))
            if func is attention:
                seen.append(output.dtype)
            return output

    kept = plan.replace(training={"gradient_checkpointing": "layers"})
    with Watched():
        once = gradients(in_bf16(plan), list(range(8)))
    assert set(seen) == {torch.float32}
    with Watched():
        again = gradients(in_bf16(kept), list(range(8)))
    assert set(seen) == {torch.float32}
    assert torch.equal(flat(once), flat(again))


def test_gradients_per_record_agree_with_float32_to_the_error_of_bf16(
    units: None, plan: RunPlan
) -> None:
    """Reference: the same pass in float32."""
    rows = list(range(12))
    exact, found = gradients(plan, rows), gradients(in_bf16(plan), rows)
    assert {p.grad_sample.dtype for p in found.values()} == {torch.float32}  # type: ignore[attr-defined]
    error = (flat(found) - flat(exact)).norm(dim=1) / flat(exact).norm(dim=1)
    assert 0 < float(error.max()) < BF16_ERROR


def test_a_record_has_the_same_gradient_whoever_is_in_its_batch(units: None, plan: RunPlan) -> None:
    """Reference: backward passes of one record each, in bfloat16."""
    together = flat(gradients(in_bf16(plan), [0, 7, 14]))
    for position, row in enumerate([0, 7, 14]):
        alone = flat(gradients(in_bf16(plan), [row]))[0]
        assert float((together[position] - alone).norm() / alone.norm()) < BF16_ERROR


@pytest.mark.parametrize("clip", [1e-3, 0.05, 1.0])
def test_one_record_moves_the_clipped_sum_by_no_more_than_the_clip_norm(
    units: None, plan: RunPlan, clip: float
) -> None:
    """The sum over 12 records, less the sum without one of them, and one record alone; in float64,
    after all rounding of the forward and backward pass."""
    samples = {n: p.grad_sample for n, p in gradients(in_bf16(plan), list(range(12))).items()}  # type: ignore[attr-defined]

    def clipped_sum(keep: torch.Tensor) -> torch.Tensor:
        parameters = [nn.Parameter(torch.zeros(s.shape[1:])) for s in samples.values()]
        optimizer = NoisyOptimizer(
            torch.optim.SGD([{"params": parameters, "clip_norm": clip}], lr=1.0),
            noise=SeededNoise(0),
            noise_multiplier=0.0,
            expected_batch_size=1,
        )
        for parameter, sample in zip(parameters, samples.values(), strict=True):
            parameter.grad_sample = sample[keep]  # type: ignore[attr-defined]
        optimizer.clip_and_accumulate()
        return torch.cat([p.summed_grad.flatten() for p in parameters])  # type: ignore[attr-defined]

    everyone = torch.arange(12)
    whole = clipped_sum(everyone)
    assert whole.dtype == torch.float64
    for row in everyone:
        alone = clipped_sum(everyone == row)
        moved_by = whole - clipped_sum(everyone != row)
        assert float(alone.norm()) <= clip * (1 + 1e-12)
        assert float(moved_by.norm()) <= clip * (1 + 1e-9)


@pytest.mark.parametrize("cache_bytes", [2**30, 0], ids=["cached", "anew"])
def test_a_site_trains_in_bf16_almost_what_it_trains_in_float32(
    units: None, plan: RunPlan, cache_bytes: int
) -> None:
    """A step of plain size: Adam's sign-like first steps would double what rounding leaves."""
    plan = plan.replace(
        training={"mode": "gradient", "lora": "always", "lora_rounds": 1, "lora_sample_rate": 1.0},
        rounds={"count": 1},
    )

    def update(run: RunPlan) -> State:
        def noise(stream: str, round: int) -> NoiseSource:
            return SeededNoise(stream, round)

        site, state = LocalTrainer("a", records(), noise=noise, cache_bytes=cache_bytes), moved(run)
        blob = pack_state({name: state[name] for name in sent(run, 1, state)})
        reply = site.train(Request(run, "r", 1, blob))
        assert reply.status == "ok", reply.reason
        return unpack_state(reply.blob)

    exact, found = update(plan), update(in_bf16(plan))
    assert exact.keys() == found.keys()
    for name, tensor in exact.items():
        assert found[name].dtype == torch.float32
        assert float((found[name] - tensor).norm() / tensor.norm()) < 2 * BF16_ERROR, name


def test_what_a_site_releases_in_bf16_is_a_sum_over_records(units: None, plan: RunPlan) -> None:
    """All records, less all but one of them, are that one alone, to what float32 keeps of a sum of
    24 (it is what leaves; the sum itself is in float64): no record is computed otherwise because
    another comes or goes. A record alone once made a product of one row, which a processor's tiles
    of bfloat16 add in another order than many (4e-5 on amx_bf16); it is one of four now.
    """
    run = in_bf16(plan).replace(
        training={"mode": "gradient", "lora": "always", "lora_rounds": 1, "lora_sample_rate": 1.0},
        rounds={"count": 1},
    )
    blob = pack_state({name: moved(run)[name] for name in sent(run, 1, moved(run))})
    everyone = list(range(24))

    def released(rows: list[int]) -> torch.Tensor:
        site = LocalTrainer("a", records().take(rows), noise=lambda run, round: SeededNoise(round))
        reply = site.train(Request(run, "r", 1, blob))
        update = sorted(unpack_state(reply.blob).items())
        return torch.cat([tensor.double().flatten() for _, tensor in update])

    whole, bound = released(everyone), run.privacy.clip_norm
    for row in (0, 4, 7, 11, 14, 19):
        rest = released([other for other in everyone if other != row])
        assert float((whole - rest - released([row])).norm()) < 5e-6 * bound


def test_judgements_in_bf16_do_not_hang_on_who_else_is_judged(units: None, plan: RunPlan) -> None:
    run = in_bf16(plan)
    backbone, task = load_backbone(run.backbone), task_of(run)
    model = build(run, backbone, records()).classifier  # tried out: batches fit this machine
    model.load_state(moved(run))
    inputs = task.encode(backbone, records())
    cache, targets = PrefixCache(model, inputs), task.targets(records(), inputs)
    everyone = judgements(task, model, cache, targets)
    for rows in (np.arange(0, 40, 7), np.arange(1, 40, 7), np.arange(0, 40, 9)):
        some = judgements(task, model, cache, targets, rows)
        assert torch.equal(some, everyone[rows])


def test_states_of_one_number_format_do_not_serve_the_other(units: None, plan: RunPlan) -> None:
    backbone, shelf = load_backbone(plan.backbone), CacheShelf()
    encoded = encode(backbone, records().texts, 32)
    exact = shelf.get(TextClassifier(backbone, plan).eval(), encoded, backbone=backbone)
    rounded = shelf.get(TextClassifier(backbone, in_bf16(plan)).eval(), encoded, backbone=backbone)
    assert rounded is not exact
    assert rounded.size_bytes == exact.size_bytes


def test_an_adapter_that_was_trained_in_bf16_predicts_without_units_for_it(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(plan.backbone)
    save_adapter(tmp_path / "adapter", moved(plan), in_bf16(plan), backbone, {})
    monkeypatch.setattr(precision, "has_bf16", lambda device="cpu": False)
    assert Predictor(tmp_path / "adapter").plan.training.precision == "float32"
