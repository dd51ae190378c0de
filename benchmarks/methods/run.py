"""Compare the methods: run what has not been run yet, write results and the leaderboard.

    python benchmarks/methods/run.py                     # everything; stop and start at will
    python benchmarks/methods/run.py --dataset banking77 --method fedavg --method default
    python benchmarks/methods/run.py --page              # the page alone, from the stored results

All runs on a data set are made in one process, which keeps backbone, encoded texts and frozen
states warm. After every run ``results/DATASET.json`` (in the folder ``--out``) is written anew: the
runs, each with its commit, the trials and what they chose, and versions. A run that is there is
not made again. ``docs/leaderboard.md`` and its picture follow from these files.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from grid import (
    EPSILONS,
    FILES,
    HERE,
    SEEDS,
    TRIAL_SEED,
    TUNED_ON,
    DataSet,
    Method,
    Run,
    anchor,
    datasets,
    key_of,
    methods,
    plan_of,
    tests_of,
    trials_of,
)

from lorica.common.machine.files import write_atomically

RESULTS = HERE / "results"
CACHE_BYTES = 3 * 2**30
THREADS = 1


class Book:
    """The finished runs of one data set, by plan and score."""

    def __init__(self, dataset: DataSet, folder: Path, tuned: Book | None = None) -> None:
        """
        Args:
            dataset: whose runs it has.
            folder: where they are kept.
            tuned: the book with the trials; this one when omitted.
        """
        self.dataset, self.path = dataset, folder / f"{dataset.name}.json"
        self._tuned = tuned or self
        self._found: dict[str, dict[str, Any]] = {}
        self._versions: dict[str, str] = {}
        if self.path.exists():
            content = json.loads(self.path.read_text(encoding="utf-8"))
            self._found = {entry["key"]: entry for entry in content["runs"]}
            self._versions = content["versions"]

    @property
    def tunes(self) -> bool:
        """Whether trials are run on this data set."""
        return self._tuned is self

    def of(self, run: Run) -> dict[str, Any] | None:
        """What came of a run, None when it has not been made."""
        return self._found.get(key_of(self.dataset, run))

    def add(self, entry: dict[str, Any], versions: dict[str, str]) -> None:
        """Keep a finished run, and the versions that the last one was made with."""
        self._found[entry["key"]] = entry
        self._versions = versions
        self.save()

    def save(self) -> None:
        """Write the file anew."""
        from leaderboard import chosen_of

        content = {
            "dataset": self.dataset.name,
            "what": self.dataset.what,
            "settings": {k: v for k, v in self.dataset.settings.items() if k not in FILES},
            "local": self.dataset.local,
            "versions": self._versions,
            "methods": chosen_of(self),
            "runs": list(self._found.values()),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def chosen(self, method: Method, epsilon: float) -> int | None:
        """The trial that did best at the anchor of this ε; -1 without trials, None before all
        trials are run."""
        if not method.trials:
            return -1
        found = [self._tuned.of(run) for run in trials_of(method, anchor(epsilon))]
        if any(entry is None for entry in found):
            return None
        values = [entry["value"] for entry in found if entry]
        return values.index(max(values))


def commit() -> str:
    """The commit that the runs are made with, with a + when files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=HERE, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "--short=10", "HEAD") + ("+" if changed else "")


def make(dataset: DataSet, run: Run, at: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Make one run; what came of it, and the versions it was made with."""
    from lorica.common.display.console import Console
    from lorica.simulations.run.simulate import SUMMARY
    from lorica.simulations.sweep.run import Cell, read_result, run_cell

    plan = plan_of(dataset, run)
    cell = Cell(run.method.name, {}, plan, run.score)
    begun, cpu = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run_cell(cell, Path(folder), Console(quiet=True), report=False)
        result = read_result(cell, Path(folder))
        summary = json.loads((Path(folder) / SUMMARY).read_text(encoding="utf-8"))
    return {
        "key": key_of(dataset, run),
        "score": run.score,
        "method": run.method.name,
        "epsilon": run.epsilon if math.isfinite(run.epsilon) else "inf",
        "seed": run.seed,
        "value": result.score,
        "loss": result.loss,
        "zero_shot": result.zero_shot,
        "epsilon_spent": result.epsilon,
        "bytes_up": result.bytes_up,
        "bytes_down": result.bytes_down,
        "seconds": time.monotonic() - begun,
        "cpu_seconds": time.process_time() - cpu,
        "commit": at,
    }, summary["versions"]


def fill(
    book: Book,
    wanted: list[Method],
    epsilons: Collection[float],
    seeds: Collection[int],
    deadline: float,
) -> None:
    """Make all runs that are missing, pass by pass, until the deadline (monotonic seconds): every
    method with the first seed, then with the next. Methods whose trials are not run are left out,
    but on the data set that these are run on."""
    at = commit()
    warm_up(book.dataset)
    for seed, epsilon, method in itertools.product(SEEDS, EPSILONS, wanted):
        if seed not in seeds or epsilon not in epsilons:
            continue
        for run in trials_of(method, anchor(epsilon)) if book.tunes else ():
            once(book, run, at, deadline)
        chosen = book.chosen(method, epsilon)
        if chosen is None:
            continue
        for run in tests_of(method, epsilon, chosen, [seed]):
            once(book, run, at, deadline)


def warm_up(dataset: DataSet) -> None:
    """Compute what is frozen, once: what LoRA needs of it serves the other methods, too."""
    from lorica.common.backbone.loading import backbone_of
    from lorica.common.tasks.run_data import label_sources, load_data, with_labels
    from lorica.simulations.run.sites import share_cache

    local = next(method for method in methods() if method.kind == "local")
    plan = plan_of(dataset, Run(local, math.inf, TRIAL_SEED, 0, "test"))
    data = load_data(plan)
    plan = with_labels(plan, *label_sources(plan, data))
    for records in (data.train, data.test):
        share_cache(plan, backbone_of(plan), records)


def once(book: Book, run: Run, at: str, deadline: float) -> None:
    """Make a run unless it has been made."""
    if book.of(run) is not None:
        return
    if time.monotonic() > deadline:
        raise TimeoutError
    entry, versions = make(book.dataset, run, at)
    book.add(entry, versions)
    what = "trial" if run.score == "validation" else "seed"
    number = run.trial if run.score == "validation" else run.seed
    print(
        f"{time.strftime('%H:%M:%S')} {book.dataset.name} {run.method.name} ε={run.epsilon:g} "
        f"{what} {number}: {entry['value']:.4f} in {entry['seconds']:.0f} s "
        f"({entry['cpu_seconds']:.0f} s of CPU)",
        flush=True,
    )


def main() -> None:
    """Run, then write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", action="append", choices=list(datasets()))
    parser.add_argument("--method", action="append", choices=[m.name for m in methods()])
    parser.add_argument("--epsilon", action="append", type=float, choices=EPSILONS)
    parser.add_argument("--seed", action="append", type=int, choices=SEEDS)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long")
    parser.add_argument("--out", type=Path, default=RESULTS, help="for results and their page")
    parser.add_argument("--page", action="store_true", help="only write the page")
    asked = parser.parse_args()
    tuned = Book(datasets()[TUNED_ON], asked.out)
    everything = [
        tuned if name == TUNED_ON else Book(dataset, asked.out, tuned)
        for name, dataset in datasets().items()
    ]
    books = [book for book in everything if book.dataset.name in (asked.dataset or datasets())]
    books.sort(key=lambda book: not book.tunes)
    if not asked.page:
        import torch

        from lorica.common.cache.shelf import SHELF

        torch.set_num_threads(THREADS)
        SHELF.limit_bytes = CACHE_BYTES
        wanted = [m for m in methods() if m.name in (asked.method or [m.name])]
        deadline = time.monotonic() + 60 * asked.minutes
        for book in books:
            try:
                fill(book, wanted, asked.epsilon or EPSILONS, asked.seed or SEEDS, deadline)
            except TimeoutError:
                print("Out of time: start the same command again to go on.")
    from leaderboard import write

    page = HERE.parents[1] / "docs" if asked.out == RESULTS else asked.out
    write(everything, page)


if __name__ == "__main__":
    main()
