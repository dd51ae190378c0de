"""What the methods do at a site: turns, ranks, residuals, and what follows the noise."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from lorica.client.admission.figures import SiteFigures
from lorica.client.admission.gate import Admission
from lorica.client.admission.policy import check_plan
from lorica.client.config.site import Policy, SiteConfig, SiteData, SiteIdentity
from lorica.client.mechanism.noise import NoiseSource, SeededNoise
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.factors import cut_factors
from lorica.common.adapter.state import State, pack_state, unpack_state
from lorica.common.backbone.files import backbone_sha256
from lorica.common.backbone.loading import load_backbone
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import methods_with
from lorica.common.plan.tensors import Part, factor_pairs, part_of
from lorica.common.tasks.text_classification import TextClassifier, starting_state
from lorica.common.wire.messages import Request
from tests.conftest import make_small_backbone

RECORDS = 40
WORDS = ["card", "cash", "fever", "pain", "heart", "skin", "cough", "lost", "new", "money", "my"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small backbone of tests/conftest.py, made once for this module."""
    return make_small_backbone(tmp_path_factory.mktemp("methods") / "backbone")


@pytest.fixture
def plan(tiny: Path) -> RunPlan:
    return RunPlan().replace(
        backbone={"source": str(tiny)},
        task={"labels": ["money", "health"]},
        adapter={"rank": 4},
        privacy={"epsilon": 4.0, "delta": 1e-3, "clip_norm": 1.0},
        training={"mode": "local", "expected_batch_size": 8, "local_steps": 4},
        rounds={"count": 4, "warm_start": 0},
    )


def some_records() -> Records:
    generator = random.Random(5)
    texts = [" ".join(generator.choices(WORDS, k=3 + i % 7)) for i in range(RECORDS)]
    labels = ["money" if "a" in text else "health" for text in texts]
    return Records(texts, labels, [str(i) for i in range(RECORDS)], [""] * RECORDS)


class Recording:
    """Seeded noise that remembers the deviations it was asked for."""

    kind = "seeded"

    def __init__(self, source: NoiseSource, deviations: list[float]) -> None:
        self._source, self._deviations = source, deviations

    def poisson_mask(self, count: int, rate: float) -> torch.Tensor:
        return self._source.poisson_mask(count, rate)

    def add_noise(self, total: torch.Tensor, std: float) -> torch.Tensor:
        self._deviations.append(std)
        return self._source.add_noise(total, std)

    def gaussian(self, shape: torch.Size, std: float) -> torch.Tensor:
        return self._source.gaussian(shape, std)


def begun(plan: RunPlan, *, seed: int | None = None) -> State:
    """The start of a run; with a seed, every B and residual random."""
    backbone = load_backbone(plan.backbone)
    state = starting_state(TextClassifier(backbone, plan), backbone, plan)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in state.items():
            if part_of(name) in (Part.B, Part.RESIDUAL):
                state[name] = 0.2 * torch.randn(tensor.shape, generator=generator)
    return state


def train(
    plan: RunPlan, state: State, round: int = 1, *, config: SiteConfig | None = None
) -> tuple[State, list[float]]:
    """One site's update, and the deviations of its noise."""
    deviations: list[float] = []

    def noise(run: str, round: int) -> NoiseSource:
        return Recording(SeededNoise(run, round), deviations)

    site = LocalTrainer("a", some_records(), noise=noise, admission=Admission(config))
    reply = site.train(Request(plan, "r", round, pack_state(state)))
    assert reply.status == "ok", reply.reason
    return unpack_state(reply.blob), deviations


def site_config(plan: RunPlan, **policy: Any) -> SiteConfig:
    allowed = {
        "backbones": [backbone_sha256(Path(plan.backbone.source))],
        "backbone_folders": [plan.backbone.source],
        "maximum_delta": 1e-2,
        "minimum_units": 1,
        "sampling_units": 10,
    }
    return SiteConfig(
        site=SiteIdentity(name="a"),
        data=SiteData(source="x.csv"),
        policy=Policy.model_validate(allowed | policy),
    )


# Turns


def test_rolora_is_ffa_in_odd_rounds_and_trains_a_alone_in_even_ones(plan: RunPlan) -> None:
    rolora = plan.replace(aggregation={"method": "rolora"})
    state = begun(plan, seed=1)
    odd, _ = train(rolora, state, 1)
    ffa, _ = train(plan.replace(aggregation={"method": "ffa"}), state, 1)
    assert all(torch.equal(odd[name], ffa[name]) for name in ffa) and set(odd) == set(ffa)
    even, _ = train(rolora, state, 2)
    assert {part_of(name) for name in even} == {Part.A, Part.HEAD}
    assert all(bool(tensor.any()) for tensor in even.values())


def test_rolora_alternates_in_gradient_mode_too(plan: RunPlan) -> None:
    gradient = plan.replace(
        aggregation={"method": "rolora"},
        training={"mode": "gradient", "lora": "always", "lora_rounds": 3},
    )
    state = begun(gradient, seed=1)
    parts = []
    for round in (2, 3, 4):
        update, _ = train(gradient, state, round)
        parts.append({part_of(name) for name in update} - {Part.HEAD})
    assert parts == [{Part.B}, {Part.A}, {Part.B}]


def test_la_lora_with_one_local_step_is_ffa(plan: RunPlan) -> None:
    one = plan.replace(training={"local_steps": 1})
    state = begun(plan, seed=1)
    found, deviations = train(one.replace(aggregation={"method": "la-lora"}), state)
    ffa, others = train(one.replace(aggregation={"method": "ffa"}), state)
    assert deviations == others
    for name, tensor in found.items():
        expected = ffa.get(name, torch.zeros_like(tensor))
        assert torch.equal(tensor, expected), name


def test_la_lora_noises_in_each_step_what_it_trains_alone(plan: RunPlan) -> None:
    """Half as many values as under "fedavg", at the same noise multiplier."""
    state = begun(plan, seed=1)
    found, deviations = train(plan.replace(aggregation={"method": "la-lora"}), state)
    both, all_deviations = train(plan.replace(aggregation={"method": "fedavg"}), state)
    assert set(found) == set(both)
    assert all(bool(tensor.any()) for tensor in found.values())
    factors = sum(part_of(name) in (Part.A, Part.B) for name in state)
    assert len(deviations) == 4 * (factors // 2 + 2)
    assert len(all_deviations) == 4 * (factors + 2)
    assert set(deviations) == set(all_deviations)


def test_la_lora_moves_a_by_the_gradient_after_bs_step(plan: RunPlan) -> None:
    """B = 0 at the start: A can move only because B moved in the step before."""
    quiet = plan.replace(
        aggregation={"method": "la-lora"},
        privacy={"epsilon": math.inf},
        training={"local_steps": 2, "expected_batch_size": RECORDS},
    )
    found, _ = train(quiet, begun(quiet))
    assert all(bool(tensor.any()) for name, tensor in found.items() if part_of(name) is Part.A)


# After the noise


@pytest.mark.parametrize("changes", [{"proximal": 5.0}, {"smoothing": 0.8}])
def test_what_follows_the_noise_changes_the_update_and_not_the_noise(
    plan: RunPlan, changes: dict[str, float]
) -> None:
    state = begun(plan, seed=1)
    plain, deviations = train(plan, state)
    found, others = train(plan.replace(training=changes), state)
    assert deviations == others, "no more and no less noise"
    assert any(not torch.equal(found[name], plain[name]) for name in plain)


def test_a_proximal_pull_keeps_sites_closer_to_the_global_adapter(plan: RunPlan) -> None:
    quiet = plan.replace(privacy={"epsilon": math.inf}, training={"local_steps": 12})
    state = begun(quiet, seed=1)
    lengths = []
    for weight in (0.0, 0.05, 1.0):
        update, _ = train(quiet.replace(training={"proximal": weight}), state)
        lengths.append(math.hypot(*(float(tensor.norm()) for tensor in update.values())))
    assert lengths[0] > lengths[1] > lengths[2]


# Ranks


@pytest.mark.parametrize("method", methods_with(lambda method: method.any_rank))
@pytest.mark.parametrize("rank", [1, 3])
def test_a_site_of_lower_rank_returns_factors_of_its_rank(
    plan: RunPlan, rank: int, method: str
) -> None:
    flex = plan.replace(aggregation={"method": method})
    state = begun(flex, seed=1)
    update, deviations = train(flex, state, config=site_config(flex, maximum_rank=rank))
    full, all_deviations = train(flex, state, config=site_config(flex))
    assert deviations == all_deviations
    for name, tensor in update.items():
        assert tensor.shape == state[name].shape == full[name].shape
    for name_a, name_b in factor_pairs(state).values():
        a, b = state[name_a] + update[name_a], state[name_b] + update[name_b]
        assert float(a[rank:].abs().max()) < 1e-6 and float(b[:, rank:].abs().max()) < 1e-6
        assert int(torch.linalg.matrix_rank(b.double() @ a.double(), rtol=1e-4)) == rank


def test_a_site_of_lower_rank_starts_from_the_closest_product(plan: RunPlan) -> None:
    """Tiny steps: the update shows what the site started from. Against torch's SVD."""
    flex = plan.replace(
        aggregation={"method": "flexlora"},
        training={"learning_rate": 1e-7, "head_learning_rate": 1e-4},
    )
    state = begun(flex, seed=1)
    update, _ = train(flex, state, config=site_config(flex, maximum_rank=2))
    for name_a, name_b in factor_pairs(state).values():
        product = state[name_b].double() @ state[name_a].double()
        u, s, v_t = torch.linalg.svd(product)
        closest = (u[:, :2] * s[:2]) @ v_t[:2]
        held = (state[name_b] + update[name_b]) @ (state[name_a] + update[name_a])
        assert float((held.double() - closest).abs().max()) < 1e-5


def test_cutting_factors_to_more_than_their_products_rank_changes_no_product(
    plan: RunPlan,
) -> None:
    state = begun(plan, seed=1)
    for name_a, name_b in factor_pairs(state).values():
        state[name_b][:, 2:] = 0.0
        cut = cut_factors(state, 2)
        found = cut[name_b] @ cut[name_a]
        assert float((found - state[name_b] @ state[name_a]).abs().max()) < 1e-5


def test_a_higher_rank_is_refused_unless_the_method_can_lower_it(plan: RunPlan) -> None:
    config = site_config(plan, maximum_rank=3)
    sha256 = config.policy.backbones[0]
    with pytest.raises(LoricaError) as caught:
        check_plan(plan, config, backbone_sha256=sha256, units=RECORDS)
    assert caught.value.code is Code.POLICY_REFUSED
    flex = plan.replace(aggregation={"method": "flexlora"})
    check_plan(flex, config, backbone_sha256=sha256, units=RECORDS)
    chosen, free = SiteFigures.of(config), SiteFigures()
    assert (chosen.rank_of(flex), chosen.rank_of(plan), free.rank_of(flex)) == (3, 4, 4)


def test_factors_of_another_rank_are_refused_by_a_site_of_lower_rank(plan: RunPlan) -> None:
    flex = plan.replace(aggregation={"method": "flexlora"})
    state = begun(flex.replace(adapter={"rank": 3}), seed=1)
    with pytest.raises(LoricaError) as caught:
        train(flex, state, config=site_config(flex, maximum_rank=2))
    assert caught.value.code is Code.ADAPTER_MISMATCH


# Residuals


def test_a_site_trains_from_the_residual_it_is_sent_and_sends_none(plan: RunPlan) -> None:
    fedex = plan.replace(aggregation={"method": "fedex"}, privacy={"epsilon": math.inf})
    state = begun(fedex, seed=1)
    found, _ = train(fedex, state)
    assert {part_of(name) for name in found} == {Part.A, Part.B, Part.HEAD}
    cleared = {
        name: torch.zeros_like(tensor) if part_of(name) is Part.RESIDUAL else tensor
        for name, tensor in state.items()
    }
    without, _ = train(fedex, cleared)
    assert not torch.equal(found["head.weight"], without["head.weight"])
    plain = {name: t for name, t in cleared.items() if part_of(name) is not Part.RESIDUAL}
    average, _ = train(fedex.replace(aggregation={"method": "fedavg"}), plain)
    for name, tensor in average.items():
        assert torch.allclose(without[name], tensor, atol=1e-6)
