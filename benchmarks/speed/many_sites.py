"""Simulations of very many sites: seconds, processor seconds, memory.

    python benchmarks/speed/many_sites.py [--only many|small] [--workers 2]

*many*: the default recipe on Banking77 at 4,000 sites, 43 rounds. *small*: 100,000 sites of 10
records each, 5 rounds on the head, of which each asks a tenth of the sites. Their records are
Banking77's, drawn with replacement; each distinct text runs through the encoder once.

Both are ``lorica simulate`` in a process of its own, timed from its start to its end, report
included. Memory is the largest sum over its processes of what they hold (PSS where the system tells
it: pages that workers share count once), read twice a second. Processor seconds are of all its
processes; beside other work they say more than seconds.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _memory import Watch

HERE = Path(__file__).resolve().parent
BANKING = HERE.parents[2] / "shared" / "data" / "banking77"


def drawn(source: Path, target: Path, count: int) -> None:
    """Write so many records of a CSV file, drawn with replacement."""
    with source.open(encoding="utf-8", newline="") as file:
        head, *records = list(csv.reader(file))
    draw = random.Random(0)
    with target.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow(head)
        csv.writer(file).writerows(draw.choice(records) for _ in range(count))


def run(name: str, settings: dict[str, object], folder: Path) -> None:
    """Run one simulation and print what it took."""
    out = folder / name
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    lorica = str(Path(sys.executable).with_name("lorica"))
    command = [lorica, "simulate", "--no-store", "--out", str(out), *words]
    before, begun = _children_seconds(), time.monotonic()
    with (folder / f"{name}.txt").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        watch = Watch(process)
        if process.wait():
            log.seek(0)
            sys.exit(f"{name} failed:\n{log.read()[-2000:]}")
        watch.join()
    seconds, processor = time.monotonic() - begun, _children_seconds() - before
    rounds = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    each = sorted(one["seconds"] for one in rounds[2:])
    print(
        f"{name}: {settings['simulation.sites']:,} sites, {len(rounds) - 1} rounds: "
        f"{seconds:.0f} s, {processor:.0f} processor seconds, peak {watch.peak / 2**30:.2f} GiB; "
        f"before the first round {seconds - sum(one['seconds'] for one in rounds):.0f} s with what "
        f"came after the last, class sums {rounds[1]['seconds']:.1f} s, then {each[0]:.2f} to "
        f"{each[-1]:.2f} s a round; accuracy {rounds[-1]['accuracy']:.3f}",
        flush=True,
    )


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=BANKING, help="folder with train and test CSV")
    parser.add_argument("--only", choices=["many", "small"], help="one of the two")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0: one for every core")
    parser.add_argument("--small-sites", type=int, default=100_000)
    asked = parser.parse_args()
    if not (asked.data / "train.csv").is_file():
        sys.exit(f"{asked.data} holds no train.csv and test.csv: name a folder with --data.")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    common: dict[str, object] = {
        "data.test": asked.data / "test.csv",
        "data.label": "category",
        "simulation.workers": asked.workers,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if asked.only != "small":
            rounds: dict[str, object] = {"rounds.count": 43, "rounds.test_every": 43}
            data = {"data.train": asked.data / "train.csv", "simulation.sites": 4000}
            run("many", common | rounds | data, folder)
        if asked.only != "many":
            drawn(asked.data / "train.csv", folder / "small.csv", 10 * asked.small_sites)
            settings = {
                "data.train": folder / "small.csv",
                "simulation.sites": asked.small_sites,
                "adapter.kind": "head",
                "rounds.count": 5,
                "rounds.fraction": 0.1,
                "rounds.test_every": 5,
            }
            run("small", common | settings, folder)


if __name__ == "__main__":
    main()
