"""``lorica sweep``: many simulations from one TOML file, resumable, as a table and a picture.

A sweep file names variants (each a set of plan settings) and axes (a plan key and its values);
every variant runs once for every combination of the axes' values::

    name = "head or LoRA"
    axes = { "privacy.epsilon" = [1, 3, 8, inf], "simulation.seed" = [0, 1, 2] }
    score = "test"                      # or "validation": a part of the training data

    [settings]                          # of all variants
    "data.train" = "banking77/train.csv"

    [variants."head only"]
    "adapter.kind" = "head"

Runs of one combination that differ in ``simulation.seed`` alone are averaged.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lorica.common.config import read_toml, sentences
from lorica.common.display.console import Console
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors, write_atomically
from lorica.common.plan import RunPlan
from lorica.common.plan.io import load_plan
from lorica.common.tasks.run_data import validation_data
from lorica.server.recording.recording import Recording, change, recorded
from lorica.server.results.folder import PLAN
from lorica.server.store import RunStore
from lorica.simulations.run.keep import Keep
from lorica.simulations.run.simulate import SUMMARY, Simulation
from lorica.simulations.run.summary import versions
from lorica.simulations.sweep.result import Result, Value

RESULTS = "sweep.json"

Score = Literal["test", "validation"]


class SweepFile(BaseModel):
    """A sweep file, whole."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    name: str = Field("sweep", min_length=1)
    """Title of the table and the picture."""
    axes: dict[str, list[Value]] = {}
    """Plan key ("privacy.epsilon") -> the values it takes."""
    score: Score = "test"
    """What the score is measured on: data.test, or a part of the training data that is set aside;
    choose settings by the latter only."""
    settings: dict[str, Any] = {}
    """Plan key -> value, for all runs."""
    variants: dict[str, dict[str, Any]] = Field(min_length=1)
    """Name -> plan key -> value."""
    reports: bool = True
    """Whether every run gets a report and a picture of its own, which take some seconds."""


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    variant: str
    at: dict[str, Value]
    """Axis -> its value."""
    plan: RunPlan
    score: Score = "test"
    """As :attr:`SweepFile.score`."""

    @property
    def folder(self) -> str:
        """Name of its folder: readable, and different for different plans and kinds of score."""
        return self.bare if self.score == "test" else f"{self.bare}-{self.score}"

    @property
    def bare(self) -> str:
        """The same whatever the kind of score, as Lorica once named all folders."""
        words = "".join(c if c.isalnum() else "-" for c in self.variant)[:40]
        return f"{words}-{self.plan.fingerprint[:10]}"


def load_sweep(path: Path) -> tuple[SweepFile, list[Cell]]:
    """Read a sweep file and make all plans; paths in it are taken from its folder.

    Raises:
        LoricaError: LOR-101 unreadable, LOR-102 or LOR-103 a key or value that cannot be.
    """
    given = read_toml(path, "sweep file", Code.PLAN_UNREADABLE)
    try:
        content = SweepFile.model_validate(given)
    except ValidationError as error:
        problem = f"In {path}: {sentences(error, SweepFile)}"
        raise LoricaError(Code.PLAN_BAD_VALUE, problem) from None
    cells = []
    for variant, own in content.variants.items():
        for values in itertools.product(*content.axes.values()):
            at = dict(zip(content.axes, values, strict=True))
            plan = load_plan(None, _settings(content.settings | own | at, path.parent))
            cells.append(Cell(variant, at, plan, content.score))
    return content, cells


def run_sweep(
    path: Path, out: Path, console: Console, *, store: RunStore | None = None
) -> list[Result]:
    """Run what has not been run yet, and write ``sweep.json``, a page and a picture into ``out``.

    Args:
        path: the sweep file.
        out: the results folder.
        console: where progress is shown.
        store: keeps the sweep and its runs; None keeps them nowhere else.

    Returns:
        All results, in the file's order.
    """
    from lorica.simulations.sweep.page import write_page

    content, cells = load_sweep(path)
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        _name_by_score(out, cells)
    results: list[Result] = []
    begun = time.monotonic()
    fresh = 0
    with kept_sweep(store, cells, out, content.name) as kept:
        for number, cell in enumerate(cells, 1):
            if kept.stop():
                raise LoricaError(
                    Code.RUN_STOPPED,
                    f"An operator stopped the sweep before run {number} of {len(cells)}.",
                    mend="The same command goes on with what is left.",
                )
            folder = out / "runs" / cell.folder
            place = ", ".join(f"{key.split('.')[-1]} {value}" for key, value in cell.at.items())
            if not (folder / SUMMARY).exists():
                fresh += 1
                console.rule(f"{number} of {len(cells)}: {cell.variant} ({place})", align="left")
                keep = Keep(
                    store,
                    kind="sweep-run",
                    name=f"{cell.variant} ({place})",
                    parent=kept.run_id or None,
                )
                run_cell(cell, folder, console, report=content.reports, keep=keep)
                left = (time.monotonic() - begun) / fresh * (len(cells) - number)
                console.print(f"about {left / 60:.0f} min left", style="dim")
            results.append(read_result(cell, folder))
            _write(out, content, results)
            change(store, kept.run_id, rounds_done=number)
        write_page(out, content.name, results)
    return results


def _name_by_score(out: Path, cells: Sequence[Cell]) -> None:
    """Give the runs of a sweep by validation that an earlier version made the names that say so,
    lest a sweep by test takes them for its own."""
    try:
        by = json.loads((out / RESULTS).read_text(encoding="utf-8"))["score"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if by != "validation" or any((out / "runs").glob("*-validation")):
        return
    for cell in cells:
        old = out / "runs" / cell.bare
        if old.is_dir():
            old.rename(old.with_name(f"{cell.bare}-{by}"))


@contextmanager
def kept_sweep(
    store: RunStore | None, cells: Sequence[Cell], out: Path, name: str
) -> Iterator[Recording]:
    """Keep a sweep in the store, as the parent of its runs; its rounds are runs."""
    plan = cells[0].plan if cells else RunPlan()
    with recorded(store, plan, out, kind="sweep", name=name) as kept:
        change(store, kept.run_id, rounds=len(cells))
        yield kept


def run_cell(
    cell: Cell,
    folder: Path,
    console: Console,
    *,
    report: bool = True,
    keep: Keep | None = None,
) -> None:
    """Run one cell into a folder, or go on where it was interrupted.

    Args:
        cell: what to run.
        folder: its results folder.
        console: where progress is shown.
        report: whether to write the run's report and picture.
        keep: the run store and trackers that hear of it; none when omitted.
    """
    data = validation_data(cell.plan) if cell.score == "validation" else None
    simulation = Simulation(cell.plan, folder, console, data=data, keep=keep)
    simulation.run(resume=(folder / PLAN).exists(), report=report)


def read_result(cell: Cell, folder: Path) -> Result:
    """What came of a cell that was run into ``folder``.

    Raises:
        LoricaError: LOR-604 when its summary is damaged.
    """
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        sites = max(1, len(summary["epsilon"]))
        spent = [math.inf if value == "inf" else value for value in summary["epsilon"].values()]
        most = max(spent, default=math.inf)
        rounds = cell.plan.rounds.count
        return Result(
            variant=cell.variant,
            at=cell.at,
            headline=summary["headline"],
            score=float(summary["score"]),
            accuracy=summary["accuracy"],
            loss=summary["loss"],
            zero_shot=summary["baselines"]["zero_shot"],
            epsilon=most if math.isfinite(most) else "inf",
            bytes_up=summary["bytes_up_per_round"] * rounds // sites,
            bytes_down=summary["bytes_down_per_round"] * rounds // sites,
            seconds=summary["seconds"],
            peak_rss_bytes=summary["peak_rss_bytes"],
            fingerprint=summary["plan_fingerprint"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoricaError(
            Code.RUN_NOT_RESUMABLE,
            f"{folder / SUMMARY} is damaged: {error}.",
            mend=f"Remove {folder} and run the sweep again.",
        ) from error


def _write(out: Path, content: SweepFile, results: list[Result]) -> None:
    about: dict[str, Any] = {
        "name": content.name,
        "score": content.score,
        "versions": versions(),
        "results": [asdict(result) for result in results],
    }
    text = json.dumps(_plain(about), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(out / RESULTS, text)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def _settings(values: Mapping[str, Any], folder: Path) -> list[str]:
    """``--set`` settings; paths of data that exist beside the file are taken from there."""
    found = []
    for key, value in values.items():
        if key in ("data.train", "data.test") and (folder / str(value)).is_file():
            value = folder / str(value)
        text = json.dumps(value) if isinstance(value, list) else str(value)
        found.append(f"{key}={text}")
    return found
