"""Client-rounds a second of simulators, at the same mathematics: Lorica, pfl-research, Flower.

    python benchmarks/speed/simulators.py [--sites 40 400] [--rounds 12] [--repeats 2]

A head round on Banking77's cached features: every site computes the gradient of each of its
records, clips it, adds them up, adds noise, and the coordinator makes a step of the sum. An empty
round is the same with a site's work replaced by a constant: what the simulator itself costs. Lorica
runs whole simulations (``lorica simulate`` with the adapter kind "head"), with ledger, charges,
screening and a checkpoint every round; noise on a grid, float64. The peers (``benchmarks/peers``:
``pfl_rounds.py`` on pfl-research's SimulatedBackend, ``flower_rounds.py`` on Flower's simulation
engine with Ray, and ``loop_rounds.py``, a bare loop) do the arithmetic in float32 and none of that.

Every side is a process of its own on one core, all with one thread, and the sides take turns, so
that a busy machine slows all of them. The figure is sites over the median of a side's rounds, the
first of each run left out. pfl-research needs an older dp-accounting than Lorica, so that it cannot
be in one environment with it:

    python -m pip install --no-deps --target .peers pfl==0.6.0

and the folder is found here, or named with --pfl. Without it, or without Ray, a side is left out,
and that is said. The last line is Lorica over pfl-research, the lesser of the head rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.table import Table

from lorica.common.display.console import Console

HERE = Path(__file__).resolve().parent
BANKING = HERE.parents[2] / "shared" / "data" / "banking77"
PEERS = HERE.parent / "peers"
LORICA, PFL, FLOWER, LOOP = "Lorica", "pfl-research", "Flower with Ray", "a bare loop"
SCRIPTS = {PFL: "pfl_rounds.py", FLOWER: "flower_rounds.py", LOOP: "loop_rounds.py"}


def plan_of(data: Path, sites: int, rounds: int) -> Any:
    """Lorica's plan: one round of class sums, the rest on the head."""
    from lorica.common.plan.io import load_plan

    settings = {
        "data.train": data / "train.csv",
        "data.test": data / "test.csv",
        "data.label": "category",
        "adapter.kind": "head",
        "simulation.sites": sites,
        "simulation.workers": 1,
        "rounds.count": rounds,
        "rounds.test_every": rounds,
    }
    return load_plan(None, [f"{key}={value}" for key, value in settings.items()])


def keep_features(folder: Path) -> None:
    """Have this process keep what the encoder makes of texts in files."""
    from lorica.common.cache.files import CacheFolder
    from lorica.common.cache.shelf import SHELF

    SHELF.keep_in(CacheFolder(folder, 10**10))


def prepare(asked: argparse.Namespace, sites: int, target: Path) -> None:
    """Write what the peers run: Lorica's features, labels, sites and noise."""
    import numpy as np
    import torch

    from lorica.common.backbone.loading import backbone_of
    from lorica.common.cache.prefix import features_of
    from lorica.common.cache.shelf import SHELF
    from lorica.common.privacy.of_plan import public_privacy
    from lorica.common.tasks import task_of
    from lorica.common.tasks.run_data import label_sources, load_data, with_labels
    from lorica.simulations.run.partition import partition

    torch.set_num_threads(1)  # as the sides: what is cached is found again
    keep_features(asked.cache)
    plan = plan_of(asked.data, sites, asked.rounds)
    data = load_data(plan)
    plan = with_labels(plan, *label_sources(plan, data))
    task, backbone = task_of(plan), backbone_of(plan)
    model, encoded = task.model(backbone).eval(), task.encode(backbone, data.train)
    features = features_of(model, SHELF.get(model, encoded, backbone=backbone, states=False))
    parts = list(partition(data.train, plan.simulation, task.strata(data.train)).values())
    names = {label: number for number, label in enumerate(plan.task.labels)}
    about = {
        "labels": len(names),
        "sigma": public_privacy(plan).of_round(plan.rounds.count).noise_multiplier,
        "clip_norm": plan.privacy.clip_norm,
    }
    np.savez(
        target,
        features=features.numpy(),
        labels=np.array([names[label] for label in data.train.labels]),
        rows=np.concatenate(parts),
        counts=np.array([len(part) for part in parts]),
        about=json.dumps(about),
    )


def lorica(asked: argparse.Namespace, sites: int) -> None:
    """Lorica's side, in a process of its own: print the seconds of every head round."""
    import torch

    from lorica.simulations.run.simulate import Simulation

    torch.set_num_threads(1)
    keep_features(asked.cache)
    if asked.empty:
        work_is_constant()
    plan = plan_of(asked.data, sites, asked.rounds + 1)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        Simulation(plan, out, Console(quiet=True)).run(report=False)
        rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    # the last one is evaluated on test data
    print(json.dumps([round["seconds"] for round in rounds[2:-1]]))


def work_is_constant() -> None:
    """Replace, in this process, what sites compute by ones."""
    import torch

    from lorica.client.training import together
    from lorica.client.training.session import Session

    held: dict[int, Any] = {}

    def release(number: int) -> Any:
        if number not in held:
            sums = {"head.weight": torch.ones(77, 384)}
            held[number] = sums if number == 1 else sums | {"head.bias": torch.ones(77)}
        return held[number]

    Session.train = lambda self, round, event, noise: release(round)  # type: ignore[method-assign]
    together._released = lambda parts, request: [release(request.round)] * len(parts)


def side(
    name: str, asked: argparse.Namespace, sites: int, file: Path, *, empty: bool
) -> list[float]:
    """Seconds of the rounds of one run of a side."""
    more = ["--empty"] if empty else []
    if name == LORICA:
        own = ["--side", str(sites), "--data", str(asked.data), "--cache", str(asked.cache)]
        command = [sys.executable, __file__, *own, "--rounds", str(asked.rounds), *more]
    else:
        command = [sys.executable, str(PEERS / SCRIPTS[name]), str(file), str(asked.rounds), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if name == PFL:
        environment["PYTHONPATH"] = str(asked.pfl)

    def on_one_core() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, preexec_fn=on_one_core
    )
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}")
    found: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found[1:]


def sides(asked: argparse.Namespace) -> list[str]:
    """The sides that can be run here; says which cannot."""
    found = [LORICA, LOOP]
    if (asked.pfl / "pfl").is_dir():
        found.append(PFL)
    else:
        print(f"pfl-research is left out: no {asked.pfl}/pfl (see {Path(__file__).name}).")
    try:
        import ray  # noqa: F401
    except ImportError:
        print("Flower is left out: its simulation engine needs Ray.")
    else:
        if not asked.without_flower:
            found.append(FLOWER)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=BANKING, help="folder with train and test CSV")
    parser.add_argument("--sites", type=int, nargs="+", default=[40, 400])
    parser.add_argument("--rounds", type=int, default=12, help="head rounds of every run")
    parser.add_argument("--repeats", type=int, default=2, help="turns of every side")
    parser.add_argument("--pfl", type=Path, default=HERE.parents[1] / ".peers")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "lorica-bench")
    parser.add_argument("--without-flower", action="store_true")
    parser.add_argument("--empty", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.side:
        lorica(asked, asked.side)
        return
    if not (asked.data / "train.csv").is_file():
        sys.exit(f"{asked.data} holds no train.csv and test.csv: name a folder with --data.")
    seconds: dict[tuple[str, int, bool], list[float]] = defaultdict(list)
    names = sides(asked)
    with tempfile.TemporaryDirectory() as folder:
        for sites in asked.sites:
            file = Path(folder) / f"{sites}.npz"
            prepare(asked, sites, file)
            for _ in range(asked.repeats):
                for empty in (False, True):
                    for name in names:
                        found = side(name, asked, sites, file, empty=empty)
                        seconds[name, sites, empty] += found
    rates = {key: key[1] / statistics.median(found) for key, found in seconds.items()}
    table = Table(box=None, title="Client-rounds a second on one core")
    for head in ("", *(f"{s} sites{', empty' * e}" for s in asked.sites for e in (False, True))):
        table.add_column(head, justify="right" if head else "left")
    for name in names:
        row = [f"{rates[name, s, e]:,.0f}" for s in asked.sites for e in (False, True)]
        table.add_row(name, *row)
    Console(width=100).print(table)
    for name in names[1:]:
        for empty in (False, True):
            ratios = [rates[LORICA, s, empty] / rates[name, s, empty] for s in asked.sites]
            kind = "empty" if empty else "head"
            print(f"Lorica over {name}, {kind} rounds: {min(ratios):.2f}")
    if PFL in names:
        ratio = min(rates[LORICA, s, False] / rates[PFL, s, False] for s in asked.sites)
        print(f"simulators ratio: {ratio:.2f}")


if __name__ == "__main__":
    main()
