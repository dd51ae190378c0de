"""A whole simulated federation, written the usual way and Lorica's way: seconds and accuracy.

    python benchmarks/speed/federation.py [--rows 1500] [--rounds 8] [--local-steps 8]
    python benchmarks/speed/federation.py --full      # all of Banking77, 10 sites, 10 x 6 steps

Both sides get one plan: the same sites, records, LoRA factors, ε, rounds, local steps and batch,
and measure accuracy once, after the last round. What can be is left at its default, such as the
128 tokens that texts are cut to; LoRA is on query and value of the last layer (``--layers``). The
usual way is ``benchmarks/peers/usual.py``: Flower's simulation engine with Ray, a PEFT model
rebuilt and made private in every client call, texts padded to max_length. Lorica's way is ``lorica
simulate`` with training.mode "local" and the method "fedavg" on the same plan; beside it stands the
default recipe at the same ε.

Every side is a process of its own, timed from its start to its end, imports included; Lorica's
same plan is run before and after the usual way. Memory is the largest sum of the proportional set
sizes of a side's processes, read twice a second. The last line is seconds of the usual way over
Lorica's on the same plan, medians; the target is at least 10, at no lower accuracy.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from _memory import Watch
from rich.table import Table

from lorica.common.display.console import Console

HERE = Path(__file__).resolve().parent
BANKING = HERE.parents[2] / "shared" / "data" / "banking77"
RATES = "0.001", "0.01"
"""Learning rates of LoRA and head for the usual way: with them it does best on this plan's *test*
data, of head rates 0.003, 0.01, 0.03 and the plan's 0.4 (59.4%, 60.0%, 58.2%, 5.8%)."""
USUAL, SAME, DEFAULT = "the usual way", "Lorica, same plan", "Lorica, default recipe"


@dataclass
class Side:
    """One way to run the federation, and what was measured of it."""

    name: str
    command: list[str]
    seconds: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def part(source: Path, target: Path, rows: int) -> None:
    """Copy so many records of a CSV file, chosen at random."""
    with source.open(encoding="utf-8", newline="") as file:
        head, *records = list(csv.reader(file))
    random.Random(0).shuffle(records)
    with target.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head, *records[:rows]])


def plan_file(folder: Path, asked: argparse.Namespace) -> Path:
    """The plan that both sides follow."""
    from lorica.common.plan.io import load_plan, to_toml

    part(asked.data / "train.csv", folder / "train.csv", asked.rows)
    part(asked.data / "test.csv", folder / "test.csv", asked.rows // 3)
    settings = {
        "data.train": folder / "train.csv",
        "data.test": folder / "test.csv",
        "data.label": "category",
        "simulation.sites": asked.sites,
        "privacy.epsilon": asked.epsilon,
        "training.mode": "local",
        "training.local_steps": asked.local_steps,
        "training.expected_batch_size": asked.batch,
        "training.max_length": asked.max_length,
        "adapter.layers": f"[{asked.layers}]",
        "adapter.target_modules": '["query", "value"]',
        "aggregation.method": "fedavg",
        "rounds.count": asked.rounds,
        "rounds.warm_start": 0,
        "rounds.test_every": asked.rounds,
    }
    path = folder / "plan.toml"
    path.write_text(to_toml(load_plan(None, [f"{k}={v}" for k, v in settings.items()])))
    return path


def sides(folder: Path, plan: Path) -> list[Side]:
    """The three ways."""
    lorica = [str(Path(sys.executable).with_name("lorica")), "simulate", str(plan), "--force"]
    default = ["training.mode=gradient", "aggregation.method=fedsvd", "rounds.count=43"]
    default += ["rounds.warm_start=0.4", "rounds.test_every=43"]
    default += ["adapter.layers=[]", "adapter.target_modules=[]"]
    more = [word for setting in default for word in ("--set", setting)]
    return [
        Side(USUAL, [sys.executable, str(HERE.parent / "peers" / "usual.py"), str(plan), *RATES]),
        Side(SAME, [*lorica, "--out", str(folder / "same")]),
        Side(DEFAULT, [*lorica, *more, "--out", str(folder / "default")]),
    ]


def run(side: Side, folder: Path) -> None:
    """Run a side once and add what was measured."""
    begun = time.monotonic()
    with (folder / "log.txt").open("w+") as log:
        process = subprocess.Popen(side.command, stdout=subprocess.PIPE, stderr=log, text=True)
        watch = Watch(process)
        output = process.communicate()[0]
        side.seconds.append(time.monotonic() - begun)
        watch.join()
        side.peak_bytes = max(side.peak_bytes, watch.peak)
        if process.returncode:
            log.seek(0)
            sys.exit(f"{side.name} failed:\n{output[-2000:]}\n{log.read()[-2000:]}")
    if side.name == USUAL:
        side.accuracy.append(json.loads(output.strip().splitlines()[-1])["accuracy"])
    else:
        out = Path(side.command[-1])
        side.accuracy.append(json.loads((out / "summary.json").read_text())["accuracy"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=BANKING, help="folder with train and test CSV")
    parser.add_argument("--rows", type=int, default=1500, help="training records; a third to test")
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--local-steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--layers", default="-1", help="adapted ones; empty: all")
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--full", action="store_true", help="all of Banking77; most of an hour")
    asked = parser.parse_args()
    if asked.full:
        asked.rows, asked.sites, asked.rounds, asked.batch = 10**9, 10, 10, 96
    if not (asked.data / "train.csv").is_file():
        sys.exit(f"{asked.data} holds no train.csv and test.csv: name a folder with --data.")
    for name in ("HF_HUB_OFFLINE", "FLWR_DISABLE_UPDATE_CHECK"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        usual, same, default = found = sides(folder, plan_file(folder, asked))
        for side in (same, usual, same, default):
            run(side, folder)
    table = Table(
        box=None,
        title=f"{asked.sites} sites, {asked.rounds} rounds of {asked.local_steps} local steps, "
        f"batch {asked.batch}, ε = {asked.epsilon:g}",
    )
    for head in ("way", "seconds", "accuracy", "peak memory"):
        table.add_column(head, justify="left" if head == "way" else "right")
    for side in found:
        seconds = " ".join(f"{second:.1f}" for second in side.seconds)
        memory = f"{side.peak_bytes / 2**20:,.0f} MiB"
        table.add_row(side.name, seconds, f"{statistics.fmean(side.accuracy):.1%}", memory)
    Console(width=100).print(table)
    if same.accuracy[-1] < usual.accuracy[-1]:
        print("Lorica's accuracy on the same plan is lower: the ratio below does not count.")
    ratio = statistics.median(usual.seconds) / statistics.median(same.seconds)
    other = statistics.median(usual.seconds) / statistics.median(default.seconds)
    print(f"usual way ÷ default recipe: {other:.1f}")
    print(f"federation ratio: {ratio:.1f}")


if __name__ == "__main__":
    main()
