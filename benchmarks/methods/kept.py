"""Whether what a run ships is as good as the best state it saw, over a grid of runs.

    python benchmarks/methods/kept.py                              # all 144 runs, for hours
    python benchmarks/methods/kept.py --data sst2 --rounds 2 5 --sites 1 --epsilon inf

Every run is a simulation of the default plan with another number of rounds, sites and ε. It counts
as failed when the state it ends with is worse, on the test data, than the best that was measured
after any round, or than its start, by more than 1 point or three standard errors of the difference
of two states (a tenth of the records told otherwise). The last line of output says how many did.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ABOVE = Path(__file__).resolve().parents[3:]
SHARED = next((p / "shared/data" for p in ABOVE if (p / "shared/data").exists()), Path("data"))
TEXTS = {
    "sst2": ("sst2", "label"),
    "banking77": ("banking77", "category"),
    "medical": ("medical_abstracts", "label"),
}


def plan_of(data: str, rounds: int, sites: int, epsilon: str, more: list[str]) -> Any:
    """The default plan on a data set, with more settings."""
    from lorica.common.plan.io import load_plan

    if data == "ncbi":
        folder, text, label, ending = "ncbi_disease", "tokens", "tags", "jsonl"
        settings = ["task.kind=token-classification"]
    else:
        (folder, label), text, ending, settings = TEXTS[data], "text", "csv", []
    settings += [
        f"data.train={SHARED / folder / f'train.{ending}'}",
        f"data.test={SHARED / folder / f'test.{ending}'}",
        f"data.text={text}",
        f"data.label={label}",
        f"privacy.epsilon={epsilon}",
        f"rounds.count={rounds}",
        f"simulation.sites={sites}",
        "simulation.workers=1",
    ]
    return load_plan(None, [*settings, *more])


def judge(folder: Path) -> tuple[float, float, float, bool]:
    """Start, best and end of a finished run, and whether the end will do."""
    lines = (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    name = summary["headline"]
    scores = [record["metrics"][name] for record in records if record["metrics"]]
    error = math.sqrt(0.1 / summary["test_records"])
    allowed = max(0.01, 3 * error)
    return scores[0], max(scores), scores[-1], scores[-1] >= max(scores) - allowed


def main() -> None:
    """Run the grid and print a line for every run."""
    from rich.console import Console

    from lorica.simulations.run.simulate import Simulation

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", default=[*TEXTS, "ncbi"])
    parser.add_argument("--rounds", nargs="+", type=int, default=[2, 5, 10, 43])
    parser.add_argument("--sites", nargs="+", type=int, default=[1, 4, 10])
    parser.add_argument("--epsilon", nargs="+", default=["1", "8", "inf"])
    parser.add_argument("--set", action="append", default=[], help="of the plan: SECTION.KEY=VALUE")
    asked = parser.parse_args()
    failed = runs = 0
    for data in asked.data:
        for rounds in asked.rounds:
            for sites in asked.sites:
                for epsilon in asked.epsilon:
                    begun = time.monotonic()
                    plan = plan_of(data, rounds, sites, epsilon, asked.set)
                    with tempfile.TemporaryDirectory() as folder:
                        simulation = Simulation(plan, Path(folder), Console(quiet=True))
                        trained = simulation.run(report=False)["trained"]
                        start, best, end, good = judge(Path(folder))
                    runs, failed = runs + 1, failed + (not good)
                    print(
                        f"{data} rounds {rounds} sites {sites} epsilon {epsilon}: start "
                        f"{start:.3f} best {best:.3f} end {end:.3f} "
                        f"({trained['adapting_rounds']} adapting rounds kept) "
                        f"{'ok' if good else 'WORSE'} {time.monotonic() - begun:.0f} s",
                        flush=True,
                    )
    print(f"{failed} of {runs} runs ended worse than a state they saw.")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
