"""Every task in a federation of three sites: without privacy, and at ε = 8.

    python benchmarks/speed/tasks.py [TASK ...] [reuse]

One line a task: the score before training, after it without privacy, and after it at ε = 8
(δ = 1e-4, per record, each site with its own noise), with the seconds of both runs together. The
score is the task's headline metric on records that no site has. What is run is in
``lorica.simulations.task_plans``: the packaged synthetic clinic notes (text); notes generated of
the same vocabulary (multi-label, regression, entities, language models); the handwritten digits of
scikit-learn (images). Text tasks use the embedded backbone; the others small ones that are
pre-trained on the spot.

"images" runs the digits 5 to 9 on a vision transformer that was pre-trained on the digits 0 to 4,
"images-scratch" on the same one with random weights: the difference is what the transfer gave.
"reuse" does it in Lorica, by the command line: a source run on the digits 0 to 4, exported, is the
backbone of a run on 5 to 9 at ε = 8, against the same run on the backbone that the first began on.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lorica.common.plan import RunPlan
from lorica.server.run_folder import RunFolder
from lorica.simulations.reuse import source_then_target
from lorica.simulations.simulate import Simulation
from lorica.simulations.task_plans import DELTA, SITES, TASKS, reuse_plans

REUSE = "reuse"

Ends = dict[str, tuple[float, float]]
"""Task -> score without privacy, and at ε = 8."""


def scores(plan: RunPlan, out: Path) -> tuple[float, float, str]:
    """First and last score of a simulated run, and the metric's name."""
    console = Console(file=io.StringIO(), width=100)
    summary = Simulation(plan, out, console).run(report=False)
    rounds = RunFolder(out).rounds()
    first, last = rounds[0].score, rounds[-1].score
    assert first is not None and last is not None
    return first, last, str(summary["headline"])


def run_task(name: str, folder: Path, table: Table) -> tuple[float, float]:
    """Add one task's line to the table; its scores without privacy and at ε = 8."""
    started = time.perf_counter()
    plan = TASKS[name](folder)
    free = plan.replace(privacy={"epsilon": float("inf")})
    start, open_score, metric = scores(free, folder / f"{name}-open")
    _, private, _ = scores(plan.replace(privacy={"epsilon": 8.0}), folder / f"{name}-private")
    seconds = time.perf_counter() - started
    figures = [f"{value:.3f}" for value in (start, open_score, private)]
    table.add_row(name, plan.task.kind, metric, *figures, f"{seconds:.0f}")
    print(f"{name}: {' '.join(figures)}, {seconds:.0f} s", file=sys.stderr)
    return open_score, private


def print_gain(console: Console, ends: Ends, what: str, new: str, old: str) -> None:
    """A line that says by how much one task's scores beat another's, if both were run."""
    if {new, old} <= ends.keys():
        free, private = (a - b for a, b in zip(ends[new], ends[old], strict=True))
        console.print(f"{what}: {free:+.3f} without privacy, {private:+.3f} at ε = 8.")


def run_reuse(folder: Path, console: Console) -> None:
    """Print what the source run's exported result gave the target run."""
    started = time.perf_counter()
    found = source_then_target(folder, *reuse_plans(folder))
    console.print(
        f"Reuse: digits 5-9 at ε = 8 on the backbone that a source run (0-4, {found.metric} "
        f"{found.source:.3f}) exported {found.exported:.3f}, on the one it began on "
        f"{found.first:.3f}: {found.gain:+.3f} ({time.perf_counter() - started:.0f} s)."
    )


def main() -> None:
    """Run the tasks that the arguments name, or all."""
    known = [*TASKS, REUSE]
    names = sys.argv[1:] or known
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"No task {unknown[0]!r}; there are {', '.join(known)}.")
    console = Console(width=110)
    table = Table("run", "task", "metric", "start", "no privacy", "ε = 8", "seconds", box=None)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ends: Ends = {name: run_task(name, folder, table) for name in names if name in TASKS}
        if ends:
            console.print(f"{SITES} sites, δ = {DELTA:g} per record")
            console.print(table)
        what = "Pre-training on the digits 0-4 gave the digits 5-9"
        print_gain(console, ends, what, "images", "images-scratch")
        if REUSE in names:
            run_reuse(folder, console)


if __name__ == "__main__":
    main()
