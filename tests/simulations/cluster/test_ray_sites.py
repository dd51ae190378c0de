"""Sites on a Ray cluster: one node, two nodes, and a node that dies."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from lorica.common.errors import Code
from lorica.common.plan import RunPlan
from lorica.common.plan.io import to_toml
from lorica.server.results.folder import RunFolder
from lorica.simulations.run.simulate import Simulation
from tests.conftest import make_small_backbone
from tests.simulations.run.test_simulate import write_csv

pytestmark = [
    pytest.mark.slow("starts Ray clusters"),
    pytest.mark.xdist_group("ray"),  # one after another: each takes the machine's cores
]

SITES, ROUNDS = 4, 40


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    """Four sites; class sums, head rounds, and most rounds of LoRA."""
    folder = tmp_path_factory.mktemp("ray")
    return RunPlan().replace(
        backbone={"source": str(make_small_backbone(folder / "backbone"))},
        adapter={"rank": 8, "layers": [1, 2]},
        data={"train": str(write_csv(folder / "data.csv", 400))},
        privacy={"epsilon": 8.0, "delta": 1e-3},
        training={"lora": "always", "lora_rounds": ROUNDS - 5, "lora_sample_rate": 0.5},
        rounds={"count": ROUNDS, "minimum_sites": SITES, "test_every": ROUNDS},
        simulation={"sites": SITES, "workers": 2},
    )


@pytest.fixture(scope="module")
def expected(plan: RunPlan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What sites in one process come to."""
    out = tmp_path_factory.mktemp("in-process") / "run"
    alone = plan.replace(simulation={"workers": 1})
    Simulation(alone, out, Console(file=io.StringIO())).run(report=False)
    return load_file(out / "checkpoint.safetensors")


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A cluster of one node with one core; more can be added."""
    utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed")
    found = utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield found
    found.shutdown()


def started(plan: RunPlan, out: Path, cluster: Any) -> subprocess.Popen[str]:
    file = out.with_suffix(".toml")
    file.write_text(to_toml(plan.replace(simulation={"engine": "ray"})), encoding="utf-8")
    command = [Path(sys.executable).with_name("lorica"), "simulate", file, "--out", out]
    return subprocess.Popen(
        [*command, "--no-store"],
        env=os.environ | {"RAY_ADDRESS": cluster.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str], out: Path) -> dict[str, torch.Tensor]:
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    rounds = RunFolder(out).rounds()
    answers = [site.status for one in rounds[1:] for site in one.sites]
    assert answers == ["ok"] * SITES * ROUNDS
    return load_file(out / "checkpoint.safetensors")


def the_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-4)


def rounds_of(out: Path) -> int:
    """How many lines of rounds are written."""
    file = out / "rounds.jsonl"
    return len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 0


@pytest.mark.parametrize("nodes", [1, 2])
def test_sites_on_a_cluster_come_to_the_same_adapter(
    plan: RunPlan, expected: dict[str, torch.Tensor], tmp_path: Path, cluster: Any, nodes: int
) -> None:
    for _ in range(1, nodes):
        cluster.add_node(num_cpus=1)
    out = tmp_path / "run"
    the_same(ended(started(plan, out, cluster), out), expected)


def test_sites_of_a_node_that_dies_are_made_anew_elsewhere(
    plan: RunPlan, expected: dict[str, torch.Tensor], tmp_path: Path, cluster: Any
) -> None:
    other = cluster.add_node(num_cpus=1)
    out = tmp_path / "run"
    process = started(plan, out, cluster)
    while rounds_of(out) < 8 and process.poll() is None:
        time.sleep(0.05)
    cluster.remove_node(other, allow_graceful=False)
    assert process.poll() is None and rounds_of(out) < ROUNDS, "it died while the run went on"
    the_same(ended(process, out), expected)


def test_a_cluster_that_is_not_there_is_said(plan: RunPlan, tmp_path: Path) -> None:
    class Nowhere:
        address = "127.0.0.1:1"

    process = started(plan, tmp_path / "run", Nowhere)
    said, _ = process.communicate(timeout=280)
    assert process.returncode != 0 and Code.ENGINE_FAILED.value in said
    assert "RAY_ADDRESS" in said


def test_an_interrupt_ends_the_actors_and_leaves_whole_rounds(
    plan: RunPlan, tmp_path: Path, cluster: Any
) -> None:
    out = tmp_path / "run"
    process = started(plan, out, cluster)
    while rounds_of(out) < 8 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode != 0 and "--resume" in said
    kept = RunFolder(out).rounds()
    assert 8 <= len(kept) <= ROUNDS
    assert [one.round for one in kept] == list(range(len(kept)))
