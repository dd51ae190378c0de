"""Every task in a federation of three sites: without privacy, and at ε = 8.

    python benchmarks/speed/tasks.py [TASK ...] [reuse]

One line a task: the score before training, after it without privacy, and after it at ε = 8
(δ = 1e-4, per record, each site with its own noise), with the seconds of both runs together; a
process for every core works on the lines. The score is the task's headline metric on records that
no site has. What is run is in ``lorica.simulations.examples.task_plans``: the packaged synthetic
clinic notes (text); notes generated of the same vocabulary (multi-label, regression, entities,
language models); the handwritten digits of scikit-learn (images). Text tasks use the embedded
backbone; the others small ones that are pre-trained on the spot.

"images" runs the digits 5 to 9 on a vision transformer that was pre-trained on the digits 0 to 4,
"images-scratch" on the same one with random weights: the difference is what the transfer gave.
"triage" (notes and a table) and "stock" (digits and a table) have answers that lie half in each;
"triage-text" and "stock-image" are the same records without the table.
"reuse" does the transfer in Lorica, by the command line: a source run on the digits 0 to 4,
exported, is the backbone of a run on 5 to 9 at ε = 8, against the same run on the backbone that
the first began on.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from rich.table import Table

from lorica.common.display.console import Console
from lorica.simulations.examples.reuse import source_then_target
from lorica.simulations.examples.task_plans import DELTA, SITES, TASKS, reuse_plans
from lorica.simulations.examples.task_runs import Scores, run_tasks

REUSE = "reuse"


def print_table(console: Console, found: Iterable[Scores]) -> None:
    """A line a task, and by how much transfer or a table won where both tasks were run."""
    table = Table("run", "task", "metric", "start", "no privacy", "ε = 8", "seconds", box=None)
    ends: dict[str, Scores] = {}
    for one in found:
        figures = [f"{value:.3f}" for value in (one.start, one.free, one.private)]
        table.add_row(one.name, one.kind, one.metric, *figures, f"{one.seconds:.0f}")
        print(f"{one.name}: {' '.join(figures)}, {one.seconds:.0f} s", file=sys.stderr)
        ends[one.name] = one
    console.print(f"{SITES} sites, δ = {DELTA:g} per record")
    console.print(table)
    for what, new, old in (
        ("Pre-training on the digits 0-4 gave the digits 5-9", "images", "images-scratch"),
        ("The table gave what notes tell half of", "triage", "triage-text"),
        ("The table gave what digits tell half of", "stock", "stock-image"),
    ):
        if {new, old} <= ends.keys():
            free = ends[new].free - ends[old].free
            private = ends[new].private - ends[old].private
            console.print(f"{what}: {free:+.3f} without privacy, {private:+.3f} at ε = 8.")


def run_reuse(folder: Path, console: Console) -> None:
    """Print what the source run's exported result gave the target run."""
    started = time.perf_counter()
    found = source_then_target(folder, *reuse_plans(folder))
    console.print(
        f"Reuse: digits 5-9 at ε = 8 on the backbone that a source run (0-4, {found.metric} "
        f"{found.source:.3f}) exported {found.exported:.3f}, on the one it began on "
        f"{found.first:.3f}: {found.gain:+.3f} ({time.perf_counter() - started:.0f} s).",
        soft_wrap=True,
    )


def main() -> None:
    """Run the tasks that the arguments name, or all."""
    known = [*TASKS, REUSE]
    names = sys.argv[1:] or known
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"No task {unknown[0]!r}; there are {', '.join(known)}.")
    console = Console(width=110)
    tasks = [name for name in names if name in TASKS]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if tasks:
            print_table(console, run_tasks(tasks, folder))
        if REUSE in names:
            run_reuse(folder, console)


if __name__ == "__main__":
    main()
