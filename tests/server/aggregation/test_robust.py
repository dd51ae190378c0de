"""Robust rules: what a poisoned site can do to the mean, and not to them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from lorica.common.adapter.state import State
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import METHODS
from lorica.common.plan.stages import returned
from lorica.server.aggregation import aggregator
from lorica.server.aggregation.aggregator import Aggregator
from lorica.server.aggregation.choose import rule_of_round
from lorica.server.aggregation.form import update_norm
from lorica.server.aggregation.means.robust import Robust, krum, within_norm

PATH = "encoder.layer.5.attention.self.query"
A, B, R = f"{PATH}.lora_A.weight", f"{PATH}.lora_B.weight", f"{PATH}.residual"
SHAPES = {A: (4, 12), B: (10, 4), "head.weight": (3, 6), "head.bias": (3,)}
RULES = ["median", "trimmed-mean", "krum", "norm-bound"]
FACTOR_RULES = ["median", "trimmed-mean"]
SITES = 5


def plan(method: str, robust: str, **aggregation: Any) -> RunPlan:
    return RunPlan().replace(
        training={"mode": "local"},
        aggregation={"method": method, "robust": robust, **aggregation},
        rounds={"warm_start": 0, "minimum_sites": SITES},
    )


def start(method: str) -> State:
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return state | ({R: torch.zeros(10, 12)} if METHODS[method].residual else {})


def honest(names: list[str], site: int) -> State:
    """A common direction with noise of a tenth of its size."""
    common = torch.Generator().manual_seed(1)
    own = torch.Generator().manual_seed(100 + site)
    return {
        name: 0.1
        * (
            torch.randn(SHAPES[name], generator=common)
            + 0.1 * torch.randn(SHAPES[name], generator=own)
        )
        for name in names
    }


def poisoned(update: State) -> State:
    """Its opposite, a thousand times as long."""
    return {name: -1000 * tensor for name, tensor in update.items()}


def result(rule: Aggregator, updates: list[State]) -> State:
    for update in updates:
        rule.add(update, 100.0)
    return rule.finish()


def product(state: State) -> torch.Tensor:
    return state[B] @ state[A] + state.get(R, torch.zeros(()))


def error(found: State, reference: State) -> float:
    """Distance of the heads and of the products, in units of the honest round's own move."""
    head = float((found["head.weight"] - reference["head.weight"]).norm())
    return head + float((product(found) - product(reference)).norm())


CASES = [
    (method, rule)
    for method, rule in itertools.product(METHODS, RULES)
    if not METHODS[method].averages_products or rule not in FACTOR_RULES
]


@pytest.mark.parametrize(("method", "rule"), CASES)
def test_one_poisoned_site_of_five_breaks_the_mean_and_not_the_robust_rule(
    method: str, rule: str
) -> None:
    """Against the plain mean over the four honest sites."""
    robust, begun = plan(method, rule), start(method)
    names = returned(robust, 1, begun)
    updates = [honest(names, site) for site in range(SITES)]
    clean = result(aggregator(method, begun, names), updates[1:])
    moved = error(clean, begun)
    attacked = [poisoned(updates[0]), *updates[1:]]
    mean = result(aggregator(method, begun, names), attacked)
    held = result(rule_of_round(robust, 1, begun, {}), attacked)
    assert error(mean, clean) > 10 * moved, "the attack must break the mean"
    limit = 0.6 if rule == "norm-bound" else 0.2  # a bounded site still pulls, by its share
    assert error(held, clean) < limit * moved


@pytest.mark.parametrize(("method", "rule"), CASES)
def test_honest_sites_lose_little(method: str, rule: str) -> None:
    robust, begun = plan(method, rule), start(method)
    names = returned(robust, 1, begun)
    updates = [honest(names, site) for site in range(SITES)]
    mean = result(aggregator(method, begun, names), updates)
    held = result(rule_of_round(robust, 1, begun, {}), updates)
    assert error(held, mean) < 0.15 * error(mean, begun)


@pytest.mark.parametrize("rule", RULES)
def test_a_declared_weight_gives_no_more_say(rule: str) -> None:
    robust, begun = plan("ffa", rule), start("ffa")
    names = returned(robust, 1, begun)
    updates = [honest(names, site) for site in range(SITES)]
    heavy, even = (rule_of_round(robust, 1, begun, {}) for _ in range(2))
    for site, update in enumerate(updates):
        heavy.add(update, 1e9 if site == 0 else 1.0)
        even.add(update, 1.0)
    found, expected = heavy.finish(), even.finish()
    assert all(torch.equal(found[name], expected[name]) for name in begun)


def test_median_and_trimmed_mean_equal_numpy_and_scipy() -> None:
    begun = start("fedavg")
    names = returned(plan("fedavg", "median"), 1, begun)
    updates = [honest(names, site) for site in range(7)]
    median = result(rule_of_round(plan("fedavg", "median"), 1, begun, {}), updates)
    trimming = plan("fedavg", "trimmed-mean", trim_share=0.3)
    trimmed = result(rule_of_round(trimming, 1, begun, {}), updates)
    for name in names:
        values = np.stack([update[name].numpy() for update in updates]).astype(np.float64)
        for found, reference in (
            (median, np.median(values, axis=0)),
            (trimmed, stats.trim_mean(values, 0.3, axis=0)),
        ):
            moved = found[name].double() - begun[name].double()
            assert float((moved - torch.from_numpy(reference)).abs().max()) < 1e-6


def test_krum_keeps_the_updates_with_near_neighbours() -> None:
    """Against a loop over distances."""
    generator = torch.Generator().manual_seed(4)
    updates = [{"a": torch.randn(6, generator=generator)} for _ in range(9)]
    updates[2]["a"] += 40.0
    updates[7]["a"] -= 9.0
    scores = []
    for one in updates:
        others = [float((one["a"] - u["a"]).square().sum()) for u in updates if u is not one]
        scores.append(sum(sorted(others)[: 9 - 2 - 2]))
    expected = sorted(sorted(range(9), key=scores.__getitem__)[:7])
    kept = krum(updates, faulty=2)
    assert [next(i for i, u in enumerate(updates) if u is k) for k in kept] == expected
    assert 2 not in expected and 7 not in expected


def test_no_update_is_longer_than_the_bound_and_short_ones_stay() -> None:
    updates = [{"a": torch.full((4,), size)} for size in (0.1, 1.0, 50.0)]
    for bound, length in ((1.5, 1.5), (0.0, 2.0)):  # the median of 0.2, 2 and 100 is 2
        kept = within_norm(updates, bound)
        assert kept[0] is updates[0]
        assert update_norm(kept[2]) == pytest.approx(length)


def test_krum_keeps_fedex_exact_over_the_sites_it_keeps() -> None:
    robust, begun = plan("fedex", "krum"), start("fedex")
    names = returned(robust, 1, begun)
    updates = [honest(names, site) for site in range(SITES)]
    attacked = [poisoned(updates[0]), *updates[1:]]
    held = result(rule_of_round(robust, 1, begun, {}), attacked)
    mean = sum((begun[B] + u[B]).double() @ (begun[A] + u[A]).double() for u in updates[1:]) / 4
    assert isinstance(mean, torch.Tensor)
    assert float((product(held).double() - mean).abs().max()) < 1e-5


@pytest.mark.parametrize("rule", RULES)
def test_too_few_updates_make_no_round(rule: str) -> None:
    robust, begun = plan("ffa", rule), start("ffa")
    names = returned(robust, 1, begun)
    aggregate = rule_of_round(robust, 1, begun, {})
    for site in range(robust.robust_minimum - 1):
        aggregate.add(honest(names, site), 1.0)
    aggregate.add(honest(names, 9), 0.0)
    with pytest.raises(LoricaError) as caught:
        aggregate.finish()
    assert caught.value.code is Code.TOO_FEW_SITES


def test_bad_updates_and_weights_are_refused_and_change_nothing() -> None:
    robust, begun = plan("ffa", "median"), start("ffa")
    names = returned(robust, 1, begun)
    aggregate = rule_of_round(robust, 1, begun, {})
    for site in range(3):
        aggregate.add(honest(names, site), 1.0)
    before = aggregate.finish()
    good = honest(names, 3)
    for update, weight in (
        ({**good, "head.bias": torch.full((3,), float("nan"))}, 1.0),
        ({**good, A: torch.zeros(4, 12)}, 1.0),
        (good, -1.0),
        (good, float("inf")),
    ):
        with pytest.raises(LoricaError) as caught:
            aggregate.add(update, weight)
        assert caught.value.code is Code.UPDATE_REFUSED
    after = aggregate.finish()
    assert all(torch.equal(after[name], before[name]) for name in begun)


def test_held_updates_are_copies() -> None:
    robust, begun = plan("ffa", "norm-bound", norm_bound=1e9), start("ffa")
    names = returned(robust, 1, begun)
    aggregate = rule_of_round(robust, 1, begun, {})
    assert isinstance(aggregate, Robust)
    update = honest(names, 0)
    aggregate.add(update, 1.0)
    before = aggregate.finish()
    for tensor in update.values():
        tensor.fill_(99.0)
    after = aggregate.finish()
    assert all(torch.equal(after[name], before[name]) for name in begun)


def test_every_method_has_turns_that_the_rules_were_tried_on() -> None:
    assert {method for method, _ in CASES} == set(METHODS)
