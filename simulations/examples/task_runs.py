"""Runs of tasks for a table of all of them: without privacy and at ε = 8, several at a time."""

from __future__ import annotations

import io
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lorica.common.display.console import Console
from lorica.common.plan import RunPlan
from lorica.simulations.examples.task_plans import TASKS
from lorica.simulations.run.workers import cores

EPSILON = 8.0


@dataclass(frozen=True)
class Scores:
    """One task's scores by its headline metric, on test data that no site has."""

    name: str
    kind: str
    metric: str
    start: float
    free: float
    """After the run without privacy."""
    private: float
    """After the run at ε = 8."""
    seconds: float
    """Data, backbone and both runs."""


def run_task(name: str, folder: Path) -> Scores:
    """Make a task's data and backbone in a folder, and run it twice."""
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    plan = TASKS[name](folder)
    start, free, metric = _scores(plan, float("inf"), folder / f"{name}-free")
    _, private, _ = _scores(plan, EPSILON, folder / f"{name}-private")
    seconds = time.perf_counter() - started
    return Scores(name, plan.task.kind, metric, start, free, private, seconds)


def run_tasks(names: Sequence[str], folder: Path) -> Iterator[Scores]:
    """:func:`run_task` of all names, in their order; a process for every core works on them."""
    workers = max(1, min(cores(), len(names)))
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawned, initializer=_one_thread) as pool:
        yield from pool.map(run_task, names, [folder / name for name in names])


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)  # every core has a process


def _scores(plan: RunPlan, epsilon: float, out: Path) -> tuple[float, float, str]:
    """First and last score of a simulated run, and the metric's name."""
    from lorica.server.results.folder import RunFolder
    from lorica.simulations.run.simulate import Simulation

    console = Console(file=io.StringIO(), width=100)
    private = plan.replace(privacy={"epsilon": epsilon})
    summary = Simulation(private, out, console).run(report=False)
    rounds = RunFolder(out).rounds()
    first, last = rounds[0].score, rounds[-1].score
    assert first is not None and last is not None
    return first, last, str(summary["headline"])
