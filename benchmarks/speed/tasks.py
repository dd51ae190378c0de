"""Every task in a federation of three sites: without privacy, and at ε = 8.

    python benchmarks/speed/tasks.py [TASK ...]

One line a task: the score before training, after it without privacy, and after it at ε = 8
(δ = 1e-4, per record, each site with its own noise), with the seconds of both runs together. The
score is the task's headline metric on records that no site has.

Data: the packaged synthetic clinic notes (text); notes generated of the same vocabulary
(multi-label, regression, entities); the handwritten digits of scikit-learn (images). "images" runs
the digits 5 to 9 on a small vision transformer that was pre-trained here on the digits 0 to 4, and
"images-scratch" on the same one with random weights: the difference is what the transfer gave.
Text tasks use the embedded backbone.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lorica.common.plan import RunPlan
from lorica.server.run_folder import RunFolder
from lorica.simulations.digits import NAMES, make_vit, write_digits
from lorica.simulations.simulate import Simulation
from lorica.simulations.task_notes import (
    entity_rows,
    multi_label_rows,
    severity_rows,
    write_jsonl,
)

SITES, RECORDS = 3, 900
SOURCE, TARGET = range(5), range(5, 10)


def base(**sections: Any) -> RunPlan:
    """What all tasks have in common."""
    return (
        RunPlan()
        .replace(
            privacy={"delta": 1e-4},
            simulation={"sites": SITES},
            adapter={"kind": "head"},
            rounds={"count": 30},
        )
        .replace(**sections)
    )


def text(folder: Path) -> RunPlan:
    return base()


def multi_label(folder: Path) -> RunPlan:
    data = write_jsonl(folder / "multi-label.jsonl", multi_label_rows(RECORDS))
    kind = {"kind": "multi-label-classification"}
    return base(task=kind, data={"train": str(data)}, rounds={"count": 60})


def regression(folder: Path) -> RunPlan:
    data = write_jsonl(folder / "regression.jsonl", severity_rows(RECORDS))
    task = {"kind": "text-regression", "minimum": 0.0, "maximum": 10.0}
    return base(task=task, data={"train": str(data)}, rounds={"count": 60})


def entities(folder: Path) -> RunPlan:
    data = write_jsonl(folder / "entities.jsonl", entity_rows(RECORDS // 2))
    task = {"kind": "token-classification", "labels": ["finding", "duration"]}
    return base(task=task, data={"train": str(data)}, rounds={"count": 20})


def images(folder: Path) -> RunPlan:
    make_vit(folder / "vit", classes=SOURCE)
    return digits(folder, "vit")


def images_scratch(folder: Path) -> RunPlan:
    make_vit(folder / "scratch")
    return digits(folder, "scratch")


def digits(folder: Path, backbone: str) -> RunPlan:
    train, test = write_digits(folder / "digits", TARGET)
    return base(
        backbone={"source": str(folder / backbone)},
        task={"kind": "image-classification", "labels": [NAMES[digit] for digit in TARGET]},
        data={"train": str(train), "test": str(test)},
    )


TASKS: dict[str, Callable[[Path], RunPlan]] = {
    "text": text,
    "multi-label": multi_label,
    "regression": regression,
    "entities": entities,
    "images": images,
    "images-scratch": images_scratch,
}
"""Name -> what makes its data (and its backbone) in a folder, and its plan."""


def scores(plan: RunPlan, out: Path) -> tuple[float, float, str]:
    """First and last score of a simulated run, and the metric's name."""
    summary = Simulation(plan, out, Console(file=io.StringIO(), width=100)).run()
    rounds = RunFolder(out).rounds()
    first, last = rounds[0].score, rounds[-1].score
    assert first is not None and last is not None
    return first, last, str(summary["headline"])


def main() -> None:
    """Run the tasks that the arguments name, or all."""
    names = sys.argv[1:] or list(TASKS)
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        sys.exit(f"No task {unknown[0]!r}; there are {', '.join(TASKS)}.")
    console = Console(width=100)
    table = Table("task", "metric", "start", "no privacy", "ε = 8", "seconds", box=None)
    ends: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in names:
            plan = TASKS[name](folder)
            started = time.perf_counter()
            free = plan.replace(privacy={"epsilon": float("inf")})
            start, open_score, metric = scores(free, folder / f"{name}-open")
            _, private, _ = scores(plan, folder / f"{name}-private")
            seconds = time.perf_counter() - started
            ends[name] = open_score, private
            figures = [f"{value:.3f}" for value in (start, open_score, private)]
            table.add_row(name, metric, *figures, f"{seconds:.0f}")
            print(f"{name} done", file=sys.stderr)
    console.print(f"{SITES} sites, δ = 1e-4")
    console.print(table)
    if {"images", "images-scratch"} <= ends.keys():
        gains = [a - b for a, b in zip(ends["images"], ends["images-scratch"], strict=True)]
        console.print(
            f"Transfer from digits 0-4 gave {gains[0]:+.3f} without privacy, {gains[1]:+.3f} at "
            "ε = 8, over the same model with random weights."
        )


if __name__ == "__main__":
    main()
