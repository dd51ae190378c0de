"""Runs whose coordinator sees sums alone: the real protocol in a simulation, and its stand-in."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from lorica.client.training.trainer import LocalTrainer
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.wire.messages import Reply, Request
from lorica.simulations.run.simulate import Simulation
from tests.conftest import make_small_backbone
from tests.simulations.run.test_simulate import write_csv


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    """Three sites, one round of every stage, an evaluation at the sites."""
    folder = tmp_path_factory.mktemp("sealed")
    make_small_backbone(folder / "backbone")
    return RunPlan().replace(
        backbone={"source": str(folder / "backbone")},
        data={"train": str(write_csv(folder / "train.csv", 90))},
        privacy={"trust": "sum", "honest_sites": 2, "epsilon": 50.0},
        training={"lora": "always", "lora_rounds": 1, "lora_sample_rate": 0.5},
        rounds={"count": 3, "evaluate_every": 3, "reconnect_seconds": 0},
        simulation={"sites": 3, "workers": 1},
    )


def _run(plan: RunPlan, out: Path, **settings: Any) -> dict[str, Any]:
    console = Console(file=io.StringIO())
    return Simulation(plan, out, console).run(report=False, **settings)


def _records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]


def test_the_stand_in_gives_the_protocols_sums_to_the_bit(plan: RunPlan, tmp_path: Path) -> None:
    _run(plan, tmp_path / "protocol")
    stand_in = plan.replace(simulation={"sealing": "stand-in"})
    _run(stand_in, tmp_path / "stand-in")
    first, second = (
        load_file(tmp_path / name / "checkpoint.safetensors") for name in ("protocol", "stand-in")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    records = _records(tmp_path / "protocol")
    assert [record["sealed"] for record in records] == [0, 3, 3, 3]
    for record in records[1:]:
        assert all(site["update_norm"] is None for site in record["sites"])
        assert all(site["agreement"] is None for site in record["sites"])
    assert records[-1]["site_metrics"] == pytest.approx(
        _records(tmp_path / "stand-in")[-1]["site_metrics"]
    )


class _Dying:
    """A site that fails at some requests of a round; the others it answers as it would."""

    def __init__(self, inner: LocalTrainer, fails: set[int]) -> None:
        self._inner, self._fails, self._count = inner, fails, 0
        self.site = inner.site
        self.seen: list[Reply] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def train(self, request: Request) -> Reply:
        self._count += 1
        if self._count in self._fails:
            raise LoricaError(Code.UNEXPECTED, "dead")
        return self._inner.train(request)


@pytest.mark.parametrize(("fails", "sealed"), [({2}, [3, 3]), ({1}, [2, 3])])
def test_a_site_that_dies_at_either_stage_costs_its_vector_at_most(
    plan: RunPlan, tmp_path: Path, fails: set[int], sealed: list[int]
) -> None:
    plan = plan.replace(rounds={"count": 2, "evaluate_every": 0}, training={"lora": "never"})
    simulation = Simulation(plan, tmp_path, Console(file=io.StringIO()))
    name = next(iter(simulation._trainers))
    dying: Any = _Dying(simulation._trainers[name], fails)
    simulation._trainers = {**simulation._trainers, name: dying}
    simulation.run(report=False)
    records = _records(tmp_path)
    assert [record["sealed"] for record in records[1:]] == sealed
    assert records[1]["stage"] == "class sums"


def test_too_few_sites_stop_the_run_and_it_goes_on_with_the_same_sum(
    plan: RunPlan, tmp_path: Path
) -> None:
    plan = plan.replace(
        rounds={"count": 2, "evaluate_every": 0},
        training={"lora": "never"},
        privacy={"honest_sites": 3},
    )
    whole = Simulation(plan, tmp_path / "whole", Console(file=io.StringIO()))
    whole.run(report=False)
    broken = Simulation(plan, tmp_path / "broken", Console(file=io.StringIO()))
    name = next(iter(broken._trainers))
    real = broken._trainers
    dying: Any = _Dying(real[name], {2, 3, 4})
    broken._trainers = {**real, name: dying}
    with pytest.raises(LoricaError) as caught:
        broken.run(report=False)
    assert caught.value.code is Code.SUM_LOST  # masked by three, opened by two
    noted = json.loads((tmp_path / "broken" / "sealed-sum.json").read_text())
    assert noted["survivors"] == [0, 1, 2]
    broken._trainers = real
    broken.run(resume=True, report=False)
    first, second = (
        load_file(tmp_path / folder / "checkpoint.safetensors") for folder in ("whole", "broken")
    )
    assert all(torch.equal(first[tensor], second[tensor]) for tensor in first)
    spent = [t._ledger_of(plan).history().charges for t in broken._trainers.values()]
    assert all(len(charges) == 2 for charges in spent)  # nothing was charged twice


def test_without_noise_sealed_sums_are_those_that_sites_send_in_the_open(
    plan: RunPlan, tmp_path: Path
) -> None:
    plan = plan.replace(
        privacy={"epsilon": float("inf")}, rounds={"evaluate_every": 0}, simulation={"seed": 1}
    )
    _run(plan, tmp_path / "sealed")
    _run(plan.replace(privacy={"trust": "none", "honest_sites": 0}), tmp_path / "open")
    first, second = (
        load_file(tmp_path / name / "checkpoint.safetensors") for name in ("sealed", "open")
    )
    assert first.keys() == second.keys()
    compared = 0
    for name in first:
        # Weights whose gradient is below the grid do not move in sums, and by a whole step in the
        # open: all of a random encoder's queries and keys, and hardly any others.
        close = torch.isclose(first[name], second[name], rtol=1e-4, atol=1e-4).double().mean()
        if name.startswith("head."):
            assert close == 1
        elif ".value." in name or ".dense." in name:
            assert close > 0.98
            compared += bool(first[name].any())
    assert compared >= 6
