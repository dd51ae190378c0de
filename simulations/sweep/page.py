"""A sweep's results as a table in the terminal, a page in Markdown and a picture."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from lorica.common.display.colours import INK
from lorica.common.display.figures import new_figure, short
from lorica.common.display.tables import Table
from lorica.common.display.wording import (
    capitalise,
    change_text,
    duration,
    human_bytes,
    is_share,
    metric_name,
    metric_text,
    percent,
)
from lorica.common.machine.files import write_atomically
from lorica.simulations.reports.figures import write_png
from lorica.simulations.reports.plots import DASHES, SITE_COLOURS
from lorica.simulations.sweep.result import SEED, Result, Value

PAGE, PICTURE = "sweep.md", "sweep.png"

At = tuple[tuple[str, Value], ...]
"""Values of all axes but the seed."""


@dataclass(frozen=True)
class Score:
    """Runs that differ in their seed alone."""

    mean: float
    """Mean of the task's headline metric."""
    spread: float
    """Half the distance between the best and the worst run."""
    runs: int
    metric: str
    """The headline metric."""
    bytes_up: float
    """Mean bytes that one site sends in a run."""
    seconds: float
    """Mean seconds of a run."""


def scores(results: list[Result]) -> dict[str, dict[At, Score]]:
    """Variant -> axis values -> score; variants with the best mean over all first."""
    held: dict[str, dict[At, list[Result]]] = {}
    for result in results:
        at = tuple((key, value) for key, value in result.at.items() if key != SEED)
        held.setdefault(result.variant, {}).setdefault(at, []).append(result)
    found = {
        variant: {at: _score(runs) for at, runs in cells.items()} for variant, cells in held.items()
    }
    return dict(sorted(found.items(), key=lambda item: -_overall(item[1])))


def sweep_table(results: list[Result]) -> Table:
    """Score of every variant (rows) at every combination of axis values (columns)."""
    found = scores(results)
    places = _places(found)
    table = Table(box=None, title=f"{_title(results)}, mean ± half the spread over seeds")
    table.add_column("variant")
    for at in places:
        table.add_column(_at_text(at), justify="right")
    table.add_column("sent by a site", justify="right")
    table.add_column("time of a run", justify="right")
    for variant, cells in found.items():
        table.add_row(variant, *(_cell(cells.get(at)) for at in places), *_cost(cells))
    return table


def write_page(out: Path, name: str, results: list[Result]) -> None:
    """Write the page and the picture into ``out``."""
    found = scores(results)
    places = _places(found)
    heads = ["variant", *map(_at_text, places), "sent by a site", "time of a run"]
    title = _title(results)
    lines = [f"# {name}", "", f"![{title}]({PICTURE})", ""]
    lines += [f"{title}, mean ± half the spread over seeds.", ""]
    lines += [_row(heads), _row(["---"] + ["---:"] * (len(heads) - 1))]
    for variant, cells in found.items():
        lines.append(_row([variant, *(_cell(cells.get(at)) for at in places), *_cost(cells)]))
    _picture(out / PICTURE, name, title, found, places)
    write_atomically(out / PAGE, "\n".join(lines) + "\n")


def _picture(
    path: Path, name: str, title: str, found: dict[str, dict[At, Score]], places: list[At]
) -> None:
    with new_figure(8.0, 0.9 + 0.35 * max(8, len(found))) as figure:
        axes = figure.add_subplot()
        for number, (variant, cells) in enumerate(found.items()):
            at = [index for index, place in enumerate(places) if place in cells]
            axes.errorbar(
                at,
                [cells[places[index]].mean for index in at],
                yerr=[cells[places[index]].spread for index in at],
                label=short(variant, 40),
                color=SITE_COLOURS[number % len(SITE_COLOURS)],
                linestyle=DASHES[number // len(SITE_COLOURS) % len(DASHES)],
                marker="o",
                markersize=4,
                capsize=3,
            )
        axes.set_xticks(range(len(places)), [_at_text(place) for place in places])
        metrics = {score.metric for cells in found.values() for score in cells.values()}
        if all(map(is_share, metrics)):
            axes.yaxis.set_major_formatter(lambda value, _: percent(value))
        axes.set_ylabel(title)
        axes.set_title(name, color=INK)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        write_png(figure, path)


def _score(runs: list[Result]) -> Score:
    values = [run.score for run in runs]
    return Score(
        statistics.fmean(values),
        (max(values) - min(values)) / 2,
        len(runs),
        runs[0].headline,
        statistics.fmean(run.bytes_up for run in runs),
        statistics.fmean(run.seconds for run in runs),
    )


def _title(results: list[Result]) -> str:
    """The metrics that the results are compared by; a sweep over tasks has several."""
    names = dict.fromkeys(metric_name(result.headline) for result in results)
    return capitalise(" or ".join(names)) or "Score"


def _overall(cells: dict[At, Score]) -> float:
    return statistics.fmean(score.mean for score in cells.values())


def _places(found: dict[str, dict[At, Score]]) -> list[At]:
    return list(dict.fromkeys(at for cells in found.values() for at in cells))


def _at_text(at: At) -> str:
    return ", ".join(f"{_axis(key)} = {_value(value)}" for key, value in at) or "score"


def _axis(key: str) -> str:
    return {"privacy.epsilon": "ε"}.get(key, key.split(".")[-1])


def _value(value: Value) -> str:
    if value == float("inf"):
        return "∞"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(score: Score | None) -> str:
    if score is None:
        return "–"
    spread = change_text(score.metric, score.spread).removeprefix("+")
    return metric_text(score.metric, score.mean) + (f" ± {spread}" if score.runs > 1 else "")


def _cost(cells: dict[At, Score]) -> tuple[str, str]:
    return (
        human_bytes(statistics.fmean(score.bytes_up for score in cells.values())),
        duration(statistics.fmean(score.seconds for score in cells.values())),
    )


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
