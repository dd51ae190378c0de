"""Server optimisers: the paper's recursion, Flower's own, and resuming to the byte."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg, FedAvgM, FedYogi

from lorica.common.adapter.state import State
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import trained
from lorica.server.aggregation.choose import rule_of_round
from lorica.server.aggregation.means.server_optimizer import ServerOptimizer
from lorica.server.results.folder import RunFolder
from lorica.server.results.round import RoundRecord

PATH = "encoder.layer.5.attention.self.query"
A, B = f"{PATH}.lora_A.weight", f"{PATH}.lora_B.weight"
SHAPES = {A: (4, 12), B: (10, 4), "head.weight": (3, 6), "head.bias": (3,)}
OPTIMIZERS = ["fedavgm", "fedadam", "fedyogi"]
ROUNDS = 6


def plan(optimizer: str, method: str = "fedavg", **server: Any) -> RunPlan:
    return RunPlan().replace(
        training={"mode": "local"},
        aggregation={"method": method},
        server={"local_optimizer": optimizer, "local_rate": 0.05, "local_tau": 1e-2, **server},
        rounds={"warm_start": 0, "count": ROUNDS},
    )


def start() -> State:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def update(names: Iterable[str], site: int, round: int) -> State:
    generator = torch.Generator().manual_seed(1000 * site + round)
    return {name: 0.1 * torch.randn(SHAPES[name], generator=generator) for name in sorted(names)}


def one_round(run: RunPlan, round: int, state: State, memory: State) -> tuple[State, State]:
    rule = rule_of_round(run, round, state, memory)
    for site in (1, 2):
        rule.add(update(trained(run, round, state), site, round), float(site))
    return rule.finish(), rule.memory


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_moves_follow_the_papers_recursion(optimizer: str) -> None:
    """Against a loop in numpy, algorithm 2 of arXiv 2003.00295 and algorithm 1 of 1909.06335."""
    server = plan(optimizer).server
    rate, beta, second, tau = 0.05, server.local_momentum, server.second_moment, 1e-2
    m, v = np.zeros(7), np.full(7, tau**2)
    memory: State = {}
    generator = np.random.default_rng(3)
    for _ in range(5):
        delta = generator.normal(size=7)
        moves, memory = ServerOptimizer(server, memory).move({"x": torch.from_numpy(delta)})
        if optimizer == "fedavgm":
            m = beta * m + delta
            expected = rate * m
        else:
            m = beta * m + (1 - beta) * delta
            if optimizer == "fedadam":
                v = second * v + (1 - second) * delta**2
            else:
                v = v - (1 - second) * delta**2 * np.sign(v - delta**2)
            expected = rate * m / (np.sqrt(v) + tau)
        assert np.allclose(moves["x"].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("optimizer", ["fedavgm", "fedyogi"])
def test_moves_equal_flowers_own(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against flwr.serverapp.strategy on the same sequence of mean models (its FedAdam corrects a
    bias that the paper's does not)."""
    server = plan(optimizer).server
    momentum = server.local_momentum
    strategy: Any
    if optimizer == "fedavgm":
        strategy = FedAvgM(server_learning_rate=0.05, server_momentum=momentum)
    else:
        strategy = FedYogi(eta=0.05, beta_1=momentum, beta_2=server.second_moment, tau=1e-2)
        strategy.v_t, strategy.m_t = {"x": np.full(7, 1e-4)}, {"x": np.zeros(7)}
    generator = np.random.default_rng(3)
    ours, memory = torch.zeros(7, dtype=torch.float64), {}
    theirs = np.zeros(7)
    for round in range(1, 5):
        delta = generator.normal(size=7)
        moves, memory = ServerOptimizer(server, memory).move({"x": torch.from_numpy(delta)})
        ours = ours + moves["x"]
        mean = ArrayRecord({"x": Array(theirs + delta)})
        monkeypatch.setattr(FedAvg, "aggregate_train", lambda *_, mean=mean: (mean, None))
        record = ArrayRecord({"x": Array(theirs)})
        strategy.current_arrays = record if optimizer == "fedavgm" else {"x": theirs}
        arrays, _ = strategy.aggregate_train(round, ())
        theirs = arrays["x"].numpy()
        assert np.allclose(ours.numpy(), theirs, rtol=1e-9)


def test_fedavgm_without_memory_and_with_rate_one_is_the_plain_mean() -> None:
    begun = start()
    found, _ = one_round(plan("fedavgm", local_momentum=0.0, local_rate=1.0), 1, begun, {})
    expected, _ = one_round(plan("none"), 1, begun, {})
    assert all(torch.equal(found[name], expected[name]) for name in begun)


@pytest.mark.parametrize("method", ["fedavg", "ffa", "fedsvd", "rolora", "la-lora"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_resumed_from_its_checkpoint_ends_in_the_same_bytes(
    tmp_path: Path, optimizer: str, method: str
) -> None:
    """Against the run that was not interrupted."""
    run = plan(optimizer, method)
    straight, memory = start(), {}
    for round in range(1, ROUNDS + 1):
        straight, memory = one_round(run, round, straight, memory)
    folder = RunFolder(tmp_path / "run")
    folder.create(run)
    state, kept = start(), {}
    for round in range(1, ROUNDS + 1):
        state, kept = one_round(run, round, state, kept)
        folder.save("r", run, RoundRecord(round), state, kept)
        checkpoint = RunFolder(tmp_path / "run").checkpoint(run)
        assert checkpoint is not None
        state, kept = checkpoint.state, checkpoint.memory
    assert all(torch.equal(state[name], straight[name]) for name in straight)
    assert set(kept) == set(memory)
    assert all(torch.equal(kept[name], memory[name]) for name in memory)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_asking_twice_for_the_result_steps_once(optimizer: str) -> None:
    run, begun = plan(optimizer, "fedsvd"), start()
    _, memory = one_round(run, 1, begun, {})
    rule = rule_of_round(run, 2, begun, memory)
    rule.add(update(trained(run, 2, begun), 1, 2), 1.0)
    first, held = rule.finish(), rule.memory
    again = rule.finish()
    assert all(torch.equal(first[name], again[name]) for name in begun)
    assert all(torch.equal(held[name], rule.memory[name]) for name in held)


def test_moments_of_b_turn_with_fedsvds_axes() -> None:
    """The product that momentum stands for is the same before and after re-factorisation."""
    run, begun = plan("fedavgm", "fedsvd"), start()
    after, memory = one_round(run, 1, begun, {})
    shares = {1: 1 / 3, 2: 2 / 3}
    names = trained(run, 1, begun)
    delta = sum(share * update(names, site, 1)[B].double() for site, share in shares.items())
    meant = delta @ begun[A].double()
    assert torch.allclose(memory[f"m.{B}"] @ after[A].double(), meant, atol=1e-6)


def test_rolora_keeps_the_moments_of_the_factor_that_rests() -> None:
    run, state = plan("fedadam", "rolora"), start()
    memory: State = {}
    for round in (1, 2, 3):
        before = memory
        state, memory = one_round(run, round, state, memory)
        rests = A if round % 2 else B
        for key in (f"m.{rests}", f"v.{rests}"):
            assert (key in memory) == (key in before)
            assert key not in memory or torch.equal(memory[key], before[key])
