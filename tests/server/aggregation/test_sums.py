"""The rules for sums of releases: their equations in numpy, and what is kept between rounds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lorica.common.adapter.state import State
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import Stage, stage_of, trained
from lorica.common.privacy.of_plan import public_privacy
from lorica.common.tasks.text_classification import BIAS_INPUT
from lorica.server.aggregation.choose import rule_of_round
from lorica.server.aggregation.sums.class_sums import ClassSums
from lorica.server.aggregation.sums.gradient import GradientStep
from lorica.server.aggregation.sums.step_sizes import step_size, weight_of_lora_rounds
from lorica.server.results.folder import RunFolder
from lorica.server.results.round import RoundRecord

LAYER = "base_model.model.encoder.layer.1.attention.self.query"
A, B = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
SHAPES = {A: (2, 8), B: (6, 2), "head.weight": (3, 8), "head.bias": (3,), "head.center": (8,)}


def plan_of(*, lora_averaging: float = 0.0, **server: Any) -> RunPlan:
    """Rounds: 1 class sums, 2 to 4 head, 5 to 7 LoRA, which end with their last state."""
    return RunPlan().replace(
        task={"labels": ["a", "b", "c"]},
        adapter={"rank": 2},
        privacy={"clip_norm": 0.7},
        training={"lora": "always", "lora_rounds": 3},
        aggregation={"method": "ffa"},
        rounds={"count": 7},
        server={"lora_averaging": lora_averaging, **server},
    )


def start(seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def releases(names: list[str], round: int, sites: int = 3, scale: float = 1.0) -> list[State]:
    generator = torch.Generator().manual_seed(100 + round)
    return [
        {name: scale * torch.randn(SHAPES[name], generator=generator) for name in sorted(names)}
        for _ in range(sites)
    ]


def walk(plan: RunPlan, rounds: range, *, scale: float = 1.0) -> list[tuple[State, State]]:
    """State and memory after every round; σ is the plan's."""
    state, memory, found = start(), {}, []
    for round in rounds:
        rule = rule_of_round(plan, round, state, memory)
        for release in releases(trained(plan, round, state), round, scale=scale):
            rule.add(release, 1.0)
        state, memory = rule.finish(), rule.memory
        found.append((state, memory))
    return found


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("sigma", [0.0, 3.0, 40.0])
@pytest.mark.parametrize("sites", [1, 5])
def test_the_warm_start_is_its_closed_form(sigma: float, sites: int) -> None:
    """Names as prior, weighed by the noise's length; every row as long as at the start."""
    begin = start()
    rule = ClassSums(begin, noise_multiplier=sigma)
    sent = releases(["head.weight"], 1, sites, scale=30.0)
    for weight, release in enumerate(sent, 1):
        rule.add(release, weight)  # a sum carries its size by itself
    found = rule.finish()
    names = unit(begin["head.weight"].double().numpy())
    sums = sum(release["head.weight"].double().numpy() for release in sent)
    prior = 10 + 0.5 * sigma * math.sqrt(sites * 8)
    expected = 16 * unit(prior * names + sums)
    np.testing.assert_allclose(found["head.weight"].numpy(), expected, rtol=1e-5, atol=1e-6)
    assert not found["head.bias"].any()
    for name in (A, B, "head.center"):
        assert torch.equal(found[name], begin[name])
    assert rule.memory == {}


@pytest.mark.parametrize("sigma", [0.0, 2.0, 500.0])
def test_without_label_names_the_center_is_the_shrunk_mean_of_the_sums(sigma: float) -> None:
    """In numpy; noise that drowns the mean leaves no center, and the sums as they are."""
    begin = start() | {name: torch.zeros(SHAPES[name]) for name in ("head.weight", "head.center")}
    sent = releases(["head.weight"], 1, 3, scale=5.0)
    for release in sent:
        release["head.weight"] += 10.0  # what all records share
    rule = ClassSums(begin, noise_multiplier=sigma, center=True)
    for release in sent:
        rule.add(release, 40.0)
    found = rule.finish()
    sums = sum(release["head.weight"].double().numpy() for release in sent)
    whole = sums.sum(0)
    square = whole @ whole
    kept = max(0.0, 1 - 3 * 3 * 8 * sigma**2 / square)
    expected = kept * whole / max(3 * 40.0, math.sqrt(square))
    assert (kept == 0) == (sigma == 500)
    np.testing.assert_allclose(found["head.center"].numpy(), expected, rtol=1e-5, atol=1e-7)
    if kept:
        along = whole / math.sqrt(square)
        sums = sums - np.outer(sums @ along, along)
    np.testing.assert_allclose(found["head.weight"].numpy(), 8 * unit(sums), rtol=1e-4, atol=1e-5)
    plain = ClassSums(begin, noise_multiplier=sigma)
    for release in sent:
        plain.add(release, 40.0)
    assert not plain.finish()["head.center"].any()


def test_with_label_names_the_mean_feature_joins_the_center() -> None:
    """Features by the new center have no mean, and rows nothing along it; texts in numpy."""
    generator = np.random.default_rng(0)
    common = generator.normal(size=8)
    pooled = unit(generator.normal(size=(4000, 8)) * 0.4 + common)
    center = 0.6 * unit(generator.normal(size=(1, 8)))[0]
    features = unit(pooled - center)
    labels = generator.integers(3, size=4000)
    begin = start() | {"head.center": torch.from_numpy(center).float()}
    rule = ClassSums(begin, noise_multiplier=0.0, center=True)
    sums = np.stack([features[labels == label].sum(0) for label in range(3)])
    rule.add({"head.weight": torch.from_numpy(sums).float()}, 4000.0)
    found = rule.finish()
    again = unit(pooled - found["head.center"].double().numpy())
    before, after = (float(np.linalg.norm(f.mean(0))) for f in (features, again))
    assert before > 0.5 and after < 0.1 * before
    along = found["head.weight"].double().numpy() @ features.mean(0)
    np.testing.assert_allclose(along, 0.0, atol=1e-5)
    silent = ClassSums(begin, noise_multiplier=0.0, center=True)
    silent.add({"head.weight": torch.from_numpy(sums).float()}, 0.0)
    assert torch.equal(silent.finish()["head.center"], begin["head.center"])


def test_noise_without_signal_leaves_the_labels_names_their_weight() -> None:
    """Noise as long as a row of it is at right angles to the names, which then weigh half of it:
    the cosine between before and after is 1 / √5 (of many dimensions)."""
    generator = torch.Generator().manual_seed(0)
    begin = {"head.weight": torch.randn(3, 5000, generator=generator), "head.bias": torch.zeros(3)}
    rule = ClassSums(begin, noise_multiplier=50.0)
    rule.add({"head.weight": 50.0 * torch.randn(3, 5000, generator=generator)}, 1.0)
    before, after = (unit(s["head.weight"].double().numpy()) for s in (begin, rule.finish()))
    np.testing.assert_allclose((before * after).sum(1), 5**-0.5, atol=0.05)


class Reference:
    """The optimiser of one stage by its equations, value by value in numpy."""

    def __init__(self, plan: RunPlan, rounds: int, sigma: float, sites: int) -> None:
        self.plan, self.rounds = plan, rounds
        self.noise = sites * (sigma * plan.privacy.clip_norm) ** 2
        self.m: dict[str, np.ndarray] = {}
        self.v: dict[str, float] = {}

    def step(self, t: int, name: str, total: np.ndarray, rate: float) -> np.ndarray:
        server = self.plan.server
        self.m[name] = server.momentum * self.m.get(name, 0.0) + (1 - server.momentum) * total
        direction = self.m[name] / (1 - server.momentum**t)
        square = float((total**2).sum() / total.size)
        self.v[name] = server.second_moment * self.v.get(name, 0.0) + (
            (1 - server.second_moment) * square
        )
        v = self.v[name] / (1 - server.second_moment**t)
        if server.optimizer == "momentum":
            u = direction / self.plan.privacy.clip_norm
        elif server.optimizer == "adam":
            u = direction / math.sqrt(v)
        else:
            u = direction / math.sqrt(max(v - self.noise, 0.1 * self.noise))
        fall = np.linspace(1.0, server.final_rate, self.rounds)[t - 1]
        return rate / math.sqrt(30) * fall * u  # a stage of few rounds has the steps of thirty


class FactorReference:
    """Adam of every weight in which the noise is known, value by value in numpy."""

    def __init__(self, plan: RunPlan, rounds: int, sigma: float, sites: int) -> None:
        self.server, self.rounds = plan.server, rounds
        self.noise = sites * (sigma * plan.privacy.clip_norm) ** 2
        self.m, self.v, self.seen = 0.0, 0.0, []

    def step(self, t: int, total: np.ndarray, rate: float) -> np.ndarray:
        first, second = self.server.lora_momentum, self.server.second_moment
        self.m = first * self.m + (1 - first) * total
        self.v = second * self.v + (1 - second) * total**2
        m, v = self.m / (1 - first**t), self.v / (1 - second**t)
        u = m / np.sqrt(np.maximum(v - self.noise, self.noise))
        self.seen.append(float((total**2).mean()) / self.noise - 1)
        share = max(0.0, float(np.mean(self.seen)))
        longer = min(3.0, max(1.0, 1 / math.sqrt(share))) if share else 0.0
        wiener = 4 * self.rounds * share / (1 + 4 * self.rounds * share)
        fall = np.linspace(1.0, self.server.final_rate, self.rounds)[t - 1]
        return 2 * rate * fall * longer * wiener * u  # twice as long: few rounds


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("optimizer", ["adam", "adam-corrected", "momentum"])
@pytest.mark.parametrize("stage", [Stage.HEAD, Stage.LORA])
@pytest.mark.parametrize("scale", [0.01, 20.0])
def test_every_optimiser_steps_by_its_equation_over_a_stage(
    stage: Stage, optimizer: str, momentum: float, scale: float
) -> None:
    """Three rounds; signals far below and far above the known noise."""
    plan = plan_of(
        optimizer=optimizer,
        momentum=momentum,
        second_moment=0.8,
        final_rate=0.3,
        head_rate=0.9,
        lora_rate=0.02,
        warm_rate=0.4,
    )
    first = 2 if stage is Stage.HEAD else 5
    rounds = range(first, first + 3)
    assert {stage_of(plan, round) for round in rounds} == {stage}
    sigma = public_privacy(plan).of_round(first).noise_multiplier
    assert sigma > 0
    reference = Reference(plan, 3, sigma, sites=3)
    factors = FactorReference(plan, 3, sigma, sites=3)
    noise = sigma / public_privacy(plan).of_round(2).noise_multiplier
    counts = 0.1 * math.sqrt(0.5) / (noise if optimizer != "momentum" else noise**2)
    expected = {name: tensor.double().numpy() for name, tensor in start().items()}
    names = trained(plan, first, SHAPES)
    assert set(names) == {"head.weight", "head.bias"} | ({B} if stage is Stage.LORA else set())
    for t, (round, (state, _)) in enumerate(zip(rounds, walk(plan, rounds, scale=scale)), 1):  # noqa: B905
        sent = releases(names, round, scale=scale)
        for name in names:
            total = sum(release[name].double().numpy() for release in sent)
            if name == B:
                expected[B] = expected[B] - factors.step(t, total, 0.02)
                continue
            head = 0.9 * (1.0 if stage is Stage.HEAD else counts)
            rate = BIAS_INPUT * head if name == "head.bias" else head
            expected[name] = expected[name] - reference.step(t, name, total, rate)
        for name, tensor in state.items():
            np.testing.assert_allclose(
                tensor.numpy(), expected[name], rtol=2e-6, atol=2e-6, err_msg=f"{round} {name}"
            )


@pytest.mark.parametrize("optimizer", ["adam", "momentum"])
def test_the_head_goes_on_in_lora_rounds_as_far_as_their_noise_lets_it(optimizer: str) -> None:
    """Of all weights of LoRA rounds, the plan's has the most drift for a random walk's length:
    by simulation of both kinds of rounds; a LoRA round has 0.1 of the units, √0.5 of the bound."""
    plan = plan_of(optimizer=optimizer).replace(privacy={"epsilon": 3.0})
    sigmas = dict(public_privacy(plan).stages)
    head, lora = (sigmas[stage].noise_multiplier for stage in (Stage.HEAD, Stage.LORA))
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(2, 3, 200_000))  # stage, round, value
    divided = (head, lora) if optimizer == "adam" else (1.0, 1.0)

    def quality(weight: float) -> float:
        drift = 3 * 1.0 / divided[0] + weight * 3 * 0.1 * math.sqrt(0.5) / divided[1]
        walk = head * noise[0].sum(0) / divided[0] + weight * lora * noise[1].sum(0) / divided[1]
        return drift / float(walk.std())

    found = weight_of_lora_rounds(plan)
    assert 0.02 < found < 50
    for factor in (0.0, 0.7, 1.4, 3.0):
        assert quality(found * factor) < quality(found)


def test_in_lora_rounds_without_privacy_or_head_rounds_the_head_has_a_rate_of_its_own() -> None:
    public = plan_of(warm_rate=0.4).replace(privacy={"epsilon": math.inf})
    after_sums = plan_of(warm_rate=0.4).replace(rounds={"count": 4})
    alone = plan_of(cold_rate=0.7).replace(rounds={"count": 3, "warm_start": 0})
    for plan, round, expected in (
        (public, 5, 0.4 / math.sqrt(30)),
        (after_sums, 2, 0.4 / math.sqrt(30)),
        (alone, 1, 0.7 / math.sqrt(3)),
    ):
        assert weight_of_lora_rounds(plan) == 0.0
        assert stage_of(plan, round) is Stage.LORA
        found = step_size(plan, round, "head.weight", SHAPES)
        assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("epsilon", [8.0, math.inf])
def test_a_head_that_begins_with_the_factors_has_adam_of_every_weight(epsilon: float) -> None:
    """Against plain Adam in numpy, which takes the noise's variance out of the second moment."""
    plan = plan_of(second_moment=0.8, final_rate=0.3, cold_rate=0.7).replace(
        privacy={"epsilon": epsilon}, rounds={"count": 3, "warm_start": 0}
    )
    bound = 0.7 * public_privacy(plan).of_round(1).noise_multiplier
    expected = start()["head.weight"].double().numpy()
    m, v = np.zeros((3, 8)), np.zeros((3, 8))
    for t, (state, _) in enumerate(walk(plan, range(1, 4), scale=4.0), 1):
        names = trained(plan, 1, SHAPES)
        sent = releases(names, t, scale=4.0)
        total = sum(release["head.weight"].double().numpy() for release in sent)
        m, v = 0.9 * m + 0.1 * total, 0.8 * v + 0.2 * total**2
        square, noise = v / (1 - 0.8**t), 3 * bound**2
        square = np.maximum(square - noise, noise) if noise else square
        fall = np.linspace(1.0, 0.3, 3)[t - 1]
        expected = expected - 0.7 / math.sqrt(3) * fall * m / (1 - 0.9**t) / np.sqrt(square)
        np.testing.assert_allclose(state["head.weight"].numpy(), expected, rtol=2e-6, atol=2e-6)


def test_the_factors_rate_rises_falls_and_fits_the_number_of_rounds() -> None:
    for rounds, height in ((1, 2.0), (10, 2.0), (25, 2.0), (100, 1.0), (400, 0.5)):
        plan = RunPlan().replace(
            task={"labels": ["a", "b"]},
            training={"lora": "always", "lora_rounds": rounds},
            rounds={"count": rounds + 1},
            server={"lora_rate": 0.01, "lora_warm_up": 0.1, "final_rate": 0.2},
        )
        assert plan.lora_rounds == rounds
        found = [step_size(plan, round, B, SHAPES) for round in range(2, rounds + 2)]
        rise = np.minimum(1, np.arange(1, rounds + 1) / (1 + rounds // 10))
        fall = np.linspace(1.0, 0.2, rounds) if rounds > 1 else np.ones(1)
        np.testing.assert_allclose(found, 0.01 * height * rise * fall, rtol=1e-12)
        quiet = plan.replace(privacy={"epsilon": math.inf})  # not more than 4 times the rate
        longer = [step_size(quiet, round, B, SHAPES) for round in range(2, rounds + 2)]
        most = min(3 * height, 4.0) / height
        np.testing.assert_allclose(longer, most * np.array(found), rtol=1e-12)
        for kind, labels, epsilon, cold in (
            ("token-classification", ["a"], math.inf, 5),
            ("token-classification", ["a"], 8.0, 4),
            ("masked-lm", [], math.inf, 2),
        ):
            first = plan.replace(
                task={"kind": kind, "labels": labels},
                rounds={"count": rounds, "warm_start": 0},
                privacy={"epsilon": epsilon},
            )
            begins = [step_size(first, round, B, SHAPES) for round in range(1, rounds + 1)]
            most = min(cold * height, 6.0) / height
            np.testing.assert_allclose(begins, most * np.array(found), rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_adam_does_not_see_the_scale_of_gradients(momentum: float) -> None:
    """So neither the number of sites and records nor the clip norm sets the step."""
    plan = plan_of(momentum=momentum).replace(privacy={"epsilon": math.inf})
    once, more = (walk(plan, range(2, 8), scale=scale)[-1][0] for scale in (1.0, 1024.0))
    for name in SHAPES:
        torch.testing.assert_close(once[name], more[name], rtol=1e-6, atol=1e-6)


def test_noise_alone_moves_weights_by_about_the_rate_over_a_stage() -> None:
    """A random walk of T steps of rate / √T each, whatever T."""
    for rounds in (30, 100):
        plan = RunPlan().replace(
            task={"labels": ["a", "b"]},
            training={"lora": "never"},
            rounds={"count": rounds, "warm_start": 0},
            server={"head_rate": 0.5, "final_rate": 1.0},
        )
        state: State = {"head.weight": torch.zeros(2, 2000), "head.bias": torch.zeros(2)}
        memory: State = {}
        generator = torch.Generator().manual_seed(0)
        for round in range(1, rounds + 1):
            rule = rule_of_round(plan, round, state, memory)
            rule.add({n: torch.randn(t.shape, generator=generator) for n, t in state.items()}, 1.0)
            state, memory = rule.finish(), rule.memory
        assert float(state["head.weight"].std()) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("optimizer", ["adam", "adam-corrected", "momentum"])
def test_noise_alone_moves_nothing_in_lora_rounds(optimizer: str) -> None:
    """Of a step by the same rates without the share of signal, less than a twentieth is left;
    where the signal drowns the noise, all of it."""
    plan = RunPlan().replace(
        task={"labels": ["a", "b"]},
        training={"lora": "always", "lora_rounds": 4},
        aggregation={"method": "ffa"},
        rounds={"count": 4, "warm_start": 0},
        server={"optimizer": optimizer},
    )
    shapes = {A: (8, 500), B: (500, 8), "head.weight": (20, 200), "head.bias": (20,)}
    state: State = {name: torch.zeros(shape) for name, shape in shapes.items()}
    generator = torch.Generator().manual_seed(0)
    noise = public_privacy(plan).of_round(1).noise_multiplier * plan.privacy.clip_norm

    def moved(scale: float) -> float:
        rule = rule_of_round(plan, 1, state, {})
        drawn = {
            name: scale * torch.randn(state[name].shape, generator=generator)
            for name in trained(plan, 1, state)
        }
        rule.add(drawn, 1.0)
        return float(rule.finish()[B].norm()) / (float(drawn[B].norm()) or 1.0)

    alone, signal = moved(noise), moved(1000 * noise)
    per_unit = signal * (1000 if optimizer != "momentum" else 1)
    assert alone < 0.05 * per_unit


def test_where_all_differentiate_at_one_adapter_fedsvd_is_fedavg() -> None:
    states = []
    for method in ("fedavg", "fedsvd"):
        plan = plan_of().replace(aggregation={"method": method})
        assert trained(plan, 5, SHAPES) == [A, B, "head.weight", "head.bias"]
        states.append(walk(plan, range(2, 8))[-1][0])
    assert all(torch.equal(states[0][name], states[1][name]) for name in SHAPES)


@pytest.mark.parametrize("optimizer", ["adam", "adam-corrected", "momentum"])
def test_a_step_goes_on_from_a_checkpoint_as_if_nothing_had_been(
    tmp_path: Path, optimizer: str
) -> None:
    """State and memory through the run folder after every round; to the bit."""
    plan = plan_of(optimizer=optimizer, momentum=0.9)
    folder = RunFolder(tmp_path / "run")
    folder.create(plan)
    state, memory = start(), {}
    for round, (expected, kept) in enumerate(walk(plan, range(1, 8)), 1):
        rule = rule_of_round(plan, round, state, memory)
        for release in releases(trained(plan, round, state), round):
            rule.add(release, 1.0)
        folder.save("r", plan, RoundRecord(round), rule.finish(), rule.memory)
        checkpoint = folder.checkpoint(plan)
        assert checkpoint is not None
        state, memory = checkpoint.state, checkpoint.memory
        assert state.keys() == expected.keys() and memory.keys() == kept.keys()
        assert all(torch.equal(state[name], expected[name]) for name in state)
        assert all(torch.equal(memory[name], kept[name]) for name in memory)
        assert bool(memory) == (round > 1)


def test_finishing_twice_and_adding_more_is_allowed() -> None:
    """The interface's promise: the optimiser's memory moves once a round."""
    plan = plan_of(momentum=0.9)
    state, memory = walk(plan, range(1, 4))[-1]
    names = trained(plan, 4, state)
    first, second = releases(names, 4, sites=2)

    def rule(*sent: State) -> GradientStep:
        made = rule_of_round(plan, 4, state, memory)
        assert isinstance(made, GradientStep)
        for release in sent:
            made.add(release, 1.0)
        return made

    twice = rule(first)
    twice.finish()
    twice.add(second, 1.0)
    whole = rule(first, second)
    found, expected = twice.finish(), whole.finish()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(torch.equal(twice.memory[name], whole.memory[name]) for name in whole.memory)


@pytest.mark.parametrize("round", [1, 3, 6])
def test_nothing_released_and_bad_releases_are_refused(round: int) -> None:
    plan = plan_of()
    rule = rule_of_round(
        plan, round, start(), walk(plan, range(1, round))[-1][1] if round > 1 else {}
    )
    with pytest.raises(LoricaError) as caught:
        rule.finish()
    assert caught.value.code is Code.TOO_FEW_SITES
    names = trained(plan, round, start())
    (good,) = releases(names, round, sites=1)
    bad = {**good, "head.weight": torch.full(SHAPES["head.weight"], math.nan)}
    for wrong in (bad, {}, {**good, "head.center": torch.zeros(8)}, {**good, A: torch.zeros(2, 8)}):
        with pytest.raises(LoricaError) as caught:
            rule.add(wrong, 1.0)
        assert caught.value.code is Code.UPDATE_REFUSED
    rule.add(good, 1.0)
    clean = rule_of_round(plan, round, start(), rule.memory)
    clean.add(good, 1.0)
    found, expected = rule.finish(), clean.finish()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_averaging_ends_a_stage_with_the_exponential_mean_of_the_heads_iterates() -> None:
    rounds = range(2, 5)
    last = [state["head.weight"].double() for state, _ in walk(plan_of(), rounds)]
    averaged = [state["head.weight"].double() for state, _ in walk(plan_of(averaging=0.6), rounds)]
    mean = start()["head.weight"].double()
    for iterate in last:
        mean = 0.6 * mean + 0.4 * iterate
    torch.testing.assert_close(averaged, [*last[:-1], mean], rtol=1e-6, atol=1e-6)
    assert float((mean - last[-1]).abs().max()) > 0.01


def test_lora_rounds_end_with_the_mean_of_their_last_states() -> None:
    """Of head and factors; two of three rounds where the plan says a half. The states on the way,
    and what the optimiser remembers, are those of the last iterates."""
    rounds = range(5, 8)
    last = walk(plan_of(lora_rate=1.0), rounds)
    averaged = walk(plan_of(lora_averaging=0.5, lora_rate=1.0), rounds)
    for name in SHAPES:
        mean = (last[1][0][name].double() + last[2][0][name].double()) / 2
        torch.testing.assert_close(averaged[2][0][name].double(), mean, rtol=1e-6, atol=1e-7)
        for found, expected in zip(averaged[:2], last[:2], strict=True):
            assert torch.equal(found[0][name], expected[0][name])
    moments = [name for name in last[2][1] if name.startswith(("m.", "v."))]
    assert moments
    assert all(torch.equal(averaged[2][1][name], last[2][1][name]) for name in moments)
    assert float((averaged[2][0][B] - last[2][0][B]).abs().max()) > 1e-3
    whole = walk(plan_of(lora_averaging=1.0, lora_rate=1.0), rounds)[2][0][B].double()
    every = torch.stack([state[B].double() for state, _ in last]).mean(0)
    torch.testing.assert_close(whole, every, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("round", [2, 5])
def test_a_step_to_infinity_ends_the_run_before_it_is_saved(round: int) -> None:
    plan = plan_of(optimizer="momentum", head_rate=1e38, warm_rate=1e38, lora_rate=1e38)
    names = [name for name in trained(plan, round, SHAPES) if name != "head.center"]
    rule = rule_of_round(plan, round, start(), {})
    for update in releases(names, round, scale=1e3):
        rule.add(update, 1.0)
    with pytest.raises(LoricaError, match="infinite") as refused:
        rule.finish()
    assert refused.value.code is Code.UPDATE_REFUSED and "step sizes" in str(refused.value.mend)
