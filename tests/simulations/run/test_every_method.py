"""What must hold of every aggregation rule that is registered, whoever adds the next one."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from lorica.client.mechanism.noise import NoiseSource, SeededNoise
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import State, pack_state, unpack_state
from lorica.common.backbone.loading import load_backbone
from lorica.common.data.records import Records
from lorica.common.plan import RunPlan
from lorica.common.plan.io import to_toml
from lorica.common.plan.methods import METHODS
from lorica.common.plan.stages import Stage, sent, stage_of
from lorica.common.plan.tensors import Part, part_of
from lorica.common.tasks.text_classification import TextClassifier, starting_state
from lorica.common.wire.messages import Request
from lorica.server.aggregation import RULES
from lorica.simulations.run.simulate import Simulation
from tests.conftest import make_small_backbone

NAMES = sorted(RULES)
SITES, ROUNDS = 3, 2
WORDS = ["card", "cash", "fever", "pain", "heart", "skin", "cough", "lost", "new", "money", "my"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    folder = tmp_path_factory.mktemp("every")
    with (folder / "data.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(zip(*texts_and_labels(120), strict=True))
    return RunPlan().replace(
        backbone={"source": str(make_small_backbone(folder / "backbone"))},
        task={"labels": ["health", "money"]},
        adapter={"rank": 4, "layers": [-1]},
        data={"train": str(folder / "data.csv")},
        privacy={"epsilon": 8.0, "delta": 1e-3},
        training={"mode": "local", "expected_batch_size": 8, "local_steps": 4},
        rounds={"count": ROUNDS, "warm_start": 0},
        simulation={"sites": SITES},
    )


def texts_and_labels(count: int) -> tuple[list[str], list[str]]:
    generator = random.Random(5)
    texts = [" ".join(generator.choices(WORDS, k=3 + i % 7)) for i in range(count)]
    return texts, ["money" if "a" in text.split()[0] else "health" for text in texts]


def moved(plan: RunPlan) -> State:
    """A start with every B and residual away from 0, so that the encoder is not the backbone."""
    backbone = load_backbone(plan.backbone)
    state = starting_state(TextClassifier(backbone, plan), backbone, plan)
    generator = torch.Generator().manual_seed(3)
    for name, tensor in state.items():
        if part_of(name) in (Part.B, Part.RESIDUAL):
            state[name] = 0.1 * torch.randn(tensor.shape, generator=generator)
    return state


def updates(plan: RunPlan, cache_bytes: int, rounds: int) -> list[State]:
    """One site's updates in so many rounds from the same global state."""

    def noise(run: str, round: int) -> NoiseSource:
        return SeededNoise(run, round)

    texts, labels = texts_and_labels(40)
    records = Records(texts, labels, [str(row) for row in range(40)], [""] * 40)
    site, state = LocalTrainer("a", records, noise=noise, cache_bytes=cache_bytes), moved(plan)
    found = []
    for round in range(1, rounds + 1):
        blob = pack_state({name: state[name] for name in sent(plan, round, state)})
        reply = site.train(Request(plan, "r", round, blob))
        assert reply.status == "ok", reply.reason
        found.append(unpack_state(reply.blob))
    return found


@pytest.mark.parametrize("layers", [[-1], [1, 2]], ids=str)
@pytest.mark.parametrize("method", NAMES)
def test_cached_and_uncached_training_give_the_same_updates(
    plan: RunPlan, method: str, layers: list[int]
) -> None:
    """Against the site that computes every layer anew in every step; two rounds, so that turns and
    what is kept at the site are in it."""
    run = plan.replace(aggregation={"method": method}, adapter={"layers": layers})
    for cached, anew in zip(updates(run, 2**30, 2), updates(run, 0, 2), strict=True):
        assert cached.keys() == anew.keys()
        for name, tensor in cached.items():
            torch.testing.assert_close(tensor, anew[name], rtol=0, atol=1e-5)
            assert bool(tensor.any()), f"{name} did not move"


@pytest.mark.parametrize("method", [method for method in NAMES if not METHODS[method].local_only])
def test_cached_and_uncached_releases_are_the_same(plan: RunPlan, method: str) -> None:
    """Mode "gradient": sums of labels, of the head's gradients, and two of the factors'."""
    run = plan.replace(
        aggregation={"method": method},
        training={"mode": "gradient", "lora": "always", "lora_rounds": 2},
        rounds={"count": 4, "warm_start": 0.3},
    )
    stages = [stage_of(run, round) for round in range(1, 5)]
    assert stages == [Stage.CLASS_SUMS, Stage.HEAD, Stage.LORA, Stage.LORA]
    for cached, anew in zip(updates(run, 2**30, 4), updates(run, 0, 4), strict=True):
        assert cached.keys() == anew.keys()
        for name, tensor in cached.items():
            torch.testing.assert_close(tensor, anew[name], rtol=0, atol=1e-5)


@pytest.mark.slow("starts Flower's simulation engine, with Ray")
@pytest.mark.xdist_group("ray")  # one after another: each takes the machine's cores
@pytest.mark.parametrize("method", NAMES)
def test_both_engines_give_the_same_adapter(plan: RunPlan, tmp_path: Path, method: str) -> None:
    """Flower's simulation engine, its worker processes included, against the in-process one: also
    of what every site keeps for itself."""
    run = plan.replace(aggregation={"method": method})
    console = Console(file=io.StringIO(), width=100)
    expected = Simulation(run, tmp_path / "here", console).run(report=False)
    (tmp_path / "ray.toml").write_text(
        to_toml(run.replace(simulation={"engine": "ray"})), encoding="utf-8"
    )
    subprocess.run(
        [Path(sys.executable).with_name("lorica"), "simulate", "ray.toml", "--out", "ray"],
        cwd=tmp_path,
        env=os.environ | {"FLWR_TELEMETRY_ENABLED": "0"},
        check=True,
        capture_output=True,
        timeout=280,
    )
    summary = json.loads((tmp_path / "ray" / "summary.json").read_text())
    assert summary["epsilon"] == expected["epsilon"]
    assert summary["score_at_sites"] == pytest.approx(expected["score_at_sites"])
    found = load_file(tmp_path / "ray" / "checkpoint.safetensors")
    for name, tensor in load_file(tmp_path / "here" / "checkpoint.safetensors").items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)
    kept = [len(list((tmp_path / out / "personal").glob("*"))) for out in ("here", "ray")]
    assert kept[0] == kept[1]
