"""What a site releases for the coordinator's steps: against plain backward passes over the whole
model, one record at a time; what it costs, and which global adapters it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorica.client.mechanism.noise import SeededNoise
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import State, pack_state, unpack_state
from lorica.common.backbone.loading import load_backbone
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import clip_share, sent, trained
from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.of_plan import public_privacy
from lorica.common.tasks.classes import loss_sum
from lorica.common.tasks.text_classification import (
    BIAS_INPUT,
    TextClassifier,
    collate,
    encode,
    starting_state,
)
from lorica.common.wire.messages import Request
from tests.client.training.test_trainer import Log, Recording, some_records
from tests.conftest import make_small_backbone

SUMS, HEAD, LORA, LAST = 1, 3, 4, 5
"""Rounds of the three stages, and the last."""
NONE = math.inf


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small backbone of tests/conftest.py, made once for this module."""
    return make_small_backbone(tmp_path_factory.mktemp("releases") / "backbone")


@pytest.fixture
def plan(tiny: Path) -> RunPlan:
    """Round 1 class sums, 2 and 3 the head, 4 and 5 LoRA."""
    return RunPlan().replace(
        backbone={"source": str(tiny)},
        task={"labels": ["money", "health"]},
        adapter={"rank": 2, "layers": [1, 2]},
        privacy={"epsilon": 4.0, "delta": 1e-3, "clip_norm": 0.5},
        training={"lora": "always", "lora_rounds": 2, "lora_sample_rate": 0.5},
        aggregation={"method": "ffa"},
        rounds={"count": 5},
    )


def without_privacy(plan: RunPlan, **changes: dict[str, Any]) -> RunPlan:
    """No noise, and every unit in every round."""
    silent = plan.replace(privacy={"epsilon": NONE}, training={"lora_sample_rate": 1.0})
    return silent.replace(**changes)


def grouped(per_unit: int) -> Records:
    """The records of 40, with so many in a row of the same patient; the last has 13."""
    held = some_records()
    names = [f"p{min(row, 27) // per_unit}" for row in range(len(held))]
    return Records(held.texts, held.labels, names, held.groups)


def a_site(records: Records | None = None, **options: Any) -> tuple[LocalTrainer, Log]:
    log = Log()

    def noise(run: str, round: int) -> Recording:
        log.rounds.append((run, round))
        return Recording(SeededNoise(run, round), log)

    return LocalTrainer("a", records or some_records(), noise=noise, **options), log


def moved(plan: RunPlan) -> State:
    """A global adapter away from the start; B too, which only the LoRA rounds see."""
    backbone = load_backbone(plan.backbone)
    state = starting_state(TextClassifier(backbone, plan), backbone, plan)
    generator = torch.Generator().manual_seed(2)
    for name, tensor in state.items():
        if ".lora_B." in name or (name.startswith("head.") and name != "head.center"):
            state[name] = tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
    return state


def request(plan: RunPlan, round: int, state: State | None = None) -> Request:
    """As the round loop packs it."""
    held = moved(plan) if state is None else state
    names = sent(plan, round, held) if state is None else list(held)
    return Request(plan, "r", round, pack_state({name: held[name] for name in names}))


def release(plan: RunPlan, round: int, records: Records | None = None, **options: Any) -> State:
    reply = a_site(records, **options)[0].train(request(plan, round))
    assert reply.status == "ok", reply.reason
    return unpack_state(reply.blob)


def units_of(plan: RunPlan, records: Records) -> list[list[int]]:
    if plan.privacy.unit == "record":
        return [[row] for row in range(len(records))]
    order: dict[str, list[int]] = {}
    for row, name in enumerate(records.units):
        order.setdefault(name, []).append(row)
    return list(order.values())


def cut(vectors: list[torch.Tensor], bound: float) -> list[torch.Tensor]:
    norm = math.sqrt(sum(float(v.double().square().sum()) for v in vectors))
    return [v.double() * min(1.0, bound / norm) for v in vectors]


def by_hand(plan: RunPlan, round: int, records: Records) -> State:
    """The sum by the guarantee's words: whole encoder, one unpadded record, one backward pass."""
    backbone = load_backbone(plan.backbone)
    classifier = TextClassifier(backbone, plan)
    state = moved(plan)
    if round < LORA:  # the encoder is the backbone as it came
        state = {n: torch.zeros_like(t) if ".lora_B." in n else t for n, t in state.items()}
    classifier.load_state(state)
    encoded = encode(backbone, records.texts, plan.training.max_length)
    labels = torch.tensor([plan.task.labels.index(label) for label in records.labels])
    names = trained(plan, round, state)
    parameters = {name: classifier.adapter_parameters[name] for name in names}
    total = {name: torch.zeros(p.shape, dtype=torch.float64) for name, p in parameters.items()}
    share = clip_share(plan) if round >= LORA else 0.0
    bound = plan.privacy.clip_norm
    for rows in units_of(plan, records):
        mean = {name: torch.zeros_like(value) for name, value in total.items()}
        for row in rows:
            feature = classifier.features_of_ids(*collate(encoded, [row]))
            if round == SUMS:
                mean["head.weight"][labels[row]] += feature[0].detach().double() / len(rows)
                continue
            classifier.zero_grad(set_to_none=True)
            loss_sum(classifier.head(feature), labels[row : row + 1]).backward()
            for name, parameter in parameters.items():
                assert parameter.grad is not None
                scale = BIAS_INPUT if name == "head.bias" else 1.0  # that of b / BIAS_INPUT
                mean[name] += scale * parameter.grad.double() / len(rows)
        groups = [[n for n in names if n.startswith("head.")], [n for n in names if "lora" in n]]
        for group, part in zip(groups, (1 - share, share), strict=True):
            limit = 1.0 if round == SUMS else bound * math.sqrt(part)
            for name, value in zip(group, cut([mean[n] for n in group], limit), strict=True):
                total[name] += value
    return total


@pytest.mark.parametrize("per_unit", [1, 3], ids=["records", "patients"])
@pytest.mark.parametrize("method", ["ffa", "fedavg"])
@pytest.mark.parametrize("round", [SUMS, HEAD, LORA])
def test_a_release_without_noise_is_the_sum_of_clipped_gradients_one_by_one(
    plan: RunPlan, round: int, method: str, per_unit: int
) -> None:
    unit = {"unit": "patient", "max_records_per_unit": 13} if per_unit > 1 else {}
    plan = without_privacy(plan, aggregation={"method": method}, privacy=unit)
    records = grouped(per_unit)
    expected, found = by_hand(plan, round, records), release(plan, round, records)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        scale = float(expected[name].abs().max())
        assert scale > 0
        torch.testing.assert_close(tensor.double(), expected[name], rtol=0, atol=2e-4 * scale)


@pytest.mark.parametrize("method", ["ffa", "fedavg", "fedsvd"])
def test_what_is_released_is_that_of_the_stage(plan: RunPlan, method: str) -> None:
    plan = plan.replace(aggregation={"method": method})
    state = moved(plan)
    factors = {n for n in state if ".lora_B." in n or (method != "ffa" and ".lora_A." in n)}
    head = {"head.weight", "head.bias"}
    expected = {SUMS: {"head.weight"}, HEAD: head, LORA: factors | head, LAST: factors | head}
    trainer, _ = a_site()
    for round, names in expected.items():
        update = unpack_state(trainer.train(request(plan, round)).blob)
        assert {n: t.shape for n, t in update.items()} == {n: state[n].shape for n in names}
        assert all(t.dtype == torch.float32 and t.isfinite().all() for t in update.values())


def test_the_first_lora_round_starts_from_b_zero_with_a_gradient_for_b(plan: RunPlan) -> None:
    plan = without_privacy(plan)
    state = {n: torch.zeros_like(t) if ".lora_B." in n else t for n, t in moved(plan).items()}
    update = unpack_state(a_site()[0].train(request(plan, LORA, state)).blob)
    assert all(tensor.any() for tensor in update.values())


@pytest.mark.parametrize("kind", ["lora", "head"])
@pytest.mark.parametrize("round", [SUMS, HEAD, LORA])
def test_cached_and_computed_features_give_the_same_release(
    plan: RunPlan, round: int, kind: str
) -> None:
    """In the first two stages pooled states are cached, in the third token states."""
    plan = without_privacy(plan, adapter={"kind": kind})
    cached, computed = release(plan, round), release(plan, round, cache_bytes=0)
    assert cached.keys() == computed.keys()
    for name, tensor in cached.items():
        torch.testing.assert_close(computed[name], tensor, rtol=0, atol=1e-5 * len(some_records()))
        scale = float(tensor.abs().max())
        torch.testing.assert_close(computed[name] / scale, tensor / scale, rtol=0, atol=1e-5)


def test_features_of_the_first_stages_never_see_the_lora_factors(plan: RunPlan) -> None:
    """A trainer that answered a LoRA round first caches the same features as a fresh one."""
    plan = without_privacy(plan)
    trainer, _ = a_site()
    trainer.train(request(plan, LORA))
    for round in (HEAD, SUMS):
        warm = trainer.train(request(plan, round)).blob
        assert warm == a_site()[0].train(request(plan, round)).blob
    late = trainer.train(request(plan, LAST)).blob
    assert late == a_site()[0].train(request(plan, LAST)).blob


def test_a_whole_run_costs_what_the_plan_allows_and_little_less(plan: RunPlan) -> None:
    """What the noise source was really asked for, composed by the accountant of record."""
    trainer, log = a_site()
    events = []
    for round in range(1, 6):
        log.rates.clear()
        log.deviations.clear()
        trainer.train(request(plan, round))
        (rate,) = log.rates
        bound = 1.0 if round == SUMS else plan.privacy.clip_norm
        (sigma,) = {round_to(std / bound) for std in log.deviations}
        tensors = len(trained(plan, round, moved(plan)))
        assert len(log.deviations) == (1 if round < LORA else tensors), "every sum is noised"
        events.append(PrivacyEvent(sigma, rate, 1))
        expected = public_privacy(plan).of_round(round)
        assert (rate, sigma) == (expected.sample_rate, pytest.approx(expected.noise_multiplier))
    assert [event.sample_rate for event in events] == [1.0, 1.0, 1.0, 0.5, 0.5]
    spent = epsilon(events, plan.privacy.delta)
    assert 0.98 * plan.privacy.epsilon <= spent <= plan.privacy.epsilon * (1 + 1e-6)


def round_to(value: float) -> float:
    """To nine digits: quotients of equal figures differ in the last."""
    return float(f"{value:.9g}")


def test_noise_and_rate_do_not_depend_on_the_number_of_records(plan: RunPlan) -> None:
    for round in (SUMS, HEAD, LORA):
        logs = []
        for count in (40, 7):
            trainer, log = a_site(some_records(count))
            trainer.train(request(plan, round))
            logs.append((log.rates, log.deviations))
        assert logs[0] == logs[1]


@pytest.mark.parametrize("round", [SUMS, HEAD, LORA])
def test_an_empty_batch_is_answered_with_noise(plan: RunPlan, round: int) -> None:
    """As often as not with one record at a rate of 0.5: never an error, never an empty answer."""
    plan = plan.replace(training={"sample_rate": 0.5})
    one = some_records().take([0])
    for seed in range(6):
        trainer = LocalTrainer("a", one, noise=lambda run, r, s=seed: SeededNoise(run, r, s))
        reply = trainer.train(request(plan, round))
        assert reply.status == "ok", reply.reason
        assert all(t.any() and t.isfinite().all() for t in unpack_state(reply.blob).values())


def test_evaluation_after_a_head_round_needs_the_head_alone(plan: RunPlan) -> None:
    """And counts as much as with an idle adapter that was sent whole."""
    plan = without_privacy(plan, rounds={"evaluate_every": 1})
    site = a_site()[0]  # one site: what is set aside is its own secret's
    by_head = site.evaluate(request(plan, HEAD)).counts
    idle = {n: torch.zeros_like(t) if ".lora_B." in n else t for n, t in moved(plan).items()}
    by_all = site.evaluate(request(plan, LORA, idle)).counts
    assert by_head == pytest.approx(by_all, abs=1e-5)
    assert by_head[0] > 0


# Hostile global adapters.


def without(name: str) -> Callable[[State], State]:
    return lambda state: {n: t for n, t in state.items() if name not in n}


def with_center(value: float) -> Callable[[State], State]:
    return lambda state: {**state, "head.center": torch.full_like(state["head.center"], value)}


def reshaped(state: State) -> State:
    return {**state, "head.center": torch.zeros(3)}


MISFITS = {
    "no LoRA factors in a LoRA round": (LORA, without("lora"), Code.ADAPTER_MISMATCH),
    "no A in a LoRA round": (LORA, without("lora_A"), Code.ADAPTER_MISMATCH),
    "LoRA factors for class sums": (SUMS, lambda s: s, Code.ADAPTER_MISMATCH),
    "LoRA factors for the head": (HEAD, lambda s: s, Code.ADAPTER_MISMATCH),
    "no center": (LORA, without("center"), Code.ADAPTER_MISMATCH),
    "a center of another width": (LORA, reshaped, Code.ADAPTER_MISMATCH),
    "a center of NaN": (LORA, with_center(math.nan), Code.MESSAGE_MALFORMED),
    "an infinite center": (LORA, with_center(math.inf), Code.MESSAGE_MALFORMED),
}
BARE = {
    "no center": (without("center"), Code.ADAPTER_MISMATCH),
    "no bias": (without("bias"), Code.ADAPTER_MISMATCH),
    "a center of another width": (reshaped, Code.ADAPTER_MISMATCH),
    "a center of NaN": (with_center(math.nan), Code.MESSAGE_MALFORMED),
    "an infinite center": (with_center(-math.inf), Code.MESSAGE_MALFORMED),
}
for _name, (_spoil, _code) in BARE.items():
    for _round, _stage in ((SUMS, "class sums"), (HEAD, "the head")):
        MISFITS[f"{_name} for {_stage}"] = (
            _round,
            lambda s, spoil=_spoil: spoil(without("lora")(s)),
            _code,
        )


@pytest.mark.parametrize("what", sorted(MISFITS))
def test_an_adapter_that_is_not_the_stages_is_refused_before_anything_is_spent(
    plan: RunPlan, what: str
) -> None:
    round, spoil, code = MISFITS[what]
    trainer, log = a_site()
    with pytest.raises(LoricaError) as caught:
        trainer.train(request(plan, round, spoil(moved(plan))))
    assert caught.value.code is code
    assert log.rounds == []
    assert trainer.train(request(plan, round)) == a_site()[0].train(request(plan, round))


@pytest.mark.parametrize("value", [1.0, 1e6, 1e19, 3e38, -3e38, 1e-30])
def test_whatever_the_center_features_have_at_most_unit_norm(plan: RunPlan, value: float) -> None:
    """So no center makes a record count for more than the noise is made for."""
    backbone = load_backbone(plan.backbone)
    classifier = TextClassifier(backbone, plan)
    classifier.load_state(with_center(value)(moved(plan)))
    encoded = encode(backbone, some_records().texts, 64)
    with torch.no_grad():
        found = classifier.features_of_ids(*collate(encoded, range(len(encoded))))
    assert found.isfinite().all()
    assert float(found.norm(dim=1).max()) <= 1 + 1e-5


@pytest.mark.parametrize("value", [1e6, 3e38])
@pytest.mark.parametrize("round", [SUMS, HEAD, LORA])
def test_a_huge_center_changes_the_sum_by_no_more_than_the_bound(
    plan: RunPlan, round: int, value: float
) -> None:
    """With one record more or less, σ = 0."""
    plan = without_privacy(plan)
    state = with_center(value)(moved(plan))
    names = sent(plan, round, state)
    asked = request(plan, round, {name: state[name] for name in names})
    sums = []
    for count in (40, 39):
        reply = a_site(some_records(count))[0].train(asked)
        assert reply.status == "ok"
        sums.append(unpack_state(reply.blob))
    apart = [(sums[0][n] - sums[1][n]).double().square().sum() for n in sums[0]]
    bound = 1.0 if round == SUMS else plan.privacy.clip_norm
    assert math.sqrt(float(np.sum(apart))) <= bound * (1 + 1e-4)
