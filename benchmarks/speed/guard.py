"""Does the guard of negative transfer keep an alien site's own model, and leave the others alone?

Five sites with synthetic clinic notes train one model under ε = 8. At one of them every label
stands for another one ("shuffled": cardiology is written where urology is meant, and so on), as at
a site with codes of its own. Prints what each site's guard decides on the records it set aside, and
what the models that are kept are worth on test data; beside them the federation without the alien.

    make bench NAME=guard        about eight minutes on two cores
"""

from __future__ import annotations

import csv
import hashlib
import io
import tempfile
import time
from pathlib import Path
from typing import Any

from lorica.common.display.console import Console
from lorica.common.plan import RunPlan
from lorica.simulations.examples.clinic_notes import train_test
from lorica.simulations.reports.benefit import benefit_sentence, benefit_table
from lorica.simulations.run.simulate import Simulation

SITES, ALIEN = 5, "site 5"
SEEDS = (0, 1, 2)


def write(folder: Path, *, alien: bool) -> tuple[Path, Path]:
    """Training notes with a column of sites, and test notes with the labels as they are meant."""
    train, test = train_test()
    labels = sorted({row["label"] for row in train})
    for row in train:
        number = hashlib.sha256(row["patient_id"].encode()).digest()[0] % SITES
        row["site"] = f"site {number + 1}"
        if row["site"] == ALIEN:
            row["label"] = labels[(labels.index(row["label"]) + 3) % len(labels)]
    if not alien:
        train = [row for row in train if row["site"] != ALIEN]
    paths = folder / f"train{alien}.csv", folder / "test.csv"
    for path, rows in zip(paths, (train, test), strict=True):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return paths


def plan(train: Path, test: Path, seed: int) -> RunPlan:
    """The default plan with evaluation at the sites, so that records are set aside."""
    return RunPlan().replace(
        data={"train": str(train), "test": str(test), "unit": "patient_id"},
        privacy={"unit": "patient_id"},
        training={"lora": "never"},
        rounds={"count": 60, "seed": seed, "evaluate_every": 60},
        simulation={
            "partition": "by-column",
            "column": "site",
            "seed": seed,
            "baselines": "own",
            "workers": 1,
        },
    )


def main() -> None:
    """Run both federations for every seed."""
    console, quiet = Console(), Console(file=io.StringIO())
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as name:
            folder, found = Path(name), dict[bool, dict[str, Any]]()
            for alien in (True, False):
                start = time.perf_counter()
                made = plan(*write(folder, alien=alien), seed)
                made = made.replace(simulation={"sites": SITES - (not alien)})
                found[alien] = Simulation(made, folder / f"out{alien}", quiet).run(report=alien)
                seconds = time.perf_counter() - start
                print(f"seed {seed}, {'with' if alien else 'without'} the alien: {seconds:.0f} s")
                console.print(benefit_table(found[alien]))
            said = (folder / "outTrue" / "report.html").read_text()
            print("in the report:", "Did joining help each site?" in said)
            print(benefit_sentence(found[True]))
            for site, row in found[True]["benefit"].items():
                tested, other = row["tested"], found[False]["benefit"].get(site)
                print(
                    f"{site}: keeps {row['kept']}; test accuracy of the federation's "
                    f"{tested['federated']:.4f}, of the kept {tested[row['kept']]:.4f}, of the "
                    f"federation without the alien "
                    + (f"{other['tested']['federated']:.4f}" if other else "-")
                )


if __name__ == "__main__":
    main()
