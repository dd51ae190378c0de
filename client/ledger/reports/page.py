"""The ledger as one page for a privacy officer: HTML that needs nothing but itself.

Run ids come from coordinators. jinja2 escapes everything; the only markup let through is the
curve, which is made of numbers alone; and the page's own content policy forbids scripts and
anything from outside.
"""

from __future__ import annotations

import importlib.resources
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from lorica.client.ledger.reports.effort import Taken, in_all, name_of
from lorica.client.ledger.reports.summary import Point, RunRow, Summary
from lorica.client.ledger.reports.terminal import DIGITS, day
from lorica.client.ledger.verify import Inspection
from lorica.common.display.text import printable
from lorica.common.display.wording import duration, energy_text, epsilon_text
from lorica.common.machine.files import write_atomically
from lorica.common.version import __version__

MOST_RUNS, MOST_MONTHS, MOST_REFUSALS = 8, 6, 4
"""Rows that fit on the page; the newest are shown, the rest is counted."""

_WIDTH, _HEIGHT = 640, 130


def write_report(
    path: Path,
    summary: Summary,
    inspection: Inspection,
    *,
    now: datetime | None = None,
    taken: Mapping[str, Taken] | None = None,
) -> None:
    """Write the page, whole or not at all.

    Args:
        path: the HTML file.
        summary: the figures of the inspection's history.
        inspection: says whether the ledger is sound; an unsound one gets a page that says so.
        now: time that the page gives as its own; the present when omitted.
        taken: what runs took here, by name.

    Raises:
        LoricaError: LOR-601 disk full, LOR-602 refused by the system.
    """
    budgets = summary.budgets[-1][1] if summary.budgets else None
    page = _template().render(
        summary=summary,
        inspection=inspection,
        budgets=budgets,
        now=now or datetime.now(UTC),
        version=__version__,
        certainty=certainty(summary.epsilon),
        curve=Markup(curve(summary.points, budgets.lifetime if budgets else math.inf)),
        runs=_newest(summary.runs),
        run_rest=max(0, len(summary.runs) - MOST_RUNS),
        months=summary.months[-MOST_MONTHS:],
        month_rest=max(0, len(summary.months) - MOST_MONTHS),
        taken=in_all(taken or {}, (row.run for row in summary.runs)),
        taken_by=lambda run: (taken or {}).get(name_of(run)),
        refused=summary.refused[-MOST_REFUSALS:][::-1],
    )
    write_atomically(path, page.encode("utf-8", "replace"))


def certainty(epsilon: float) -> float:
    """How sure somebody who was undecided (50 %) can at most become that a unit is in the data.

    Bayes: odds of 1 grow by a factor of at most exp(ε), so to exp(ε) / (1 + exp(ε)).
    """
    return 1 / (1 + math.exp(-epsilon))


def curve(points: Sequence[Point], budget: float) -> str:
    """Total ε over time as an SVG step curve, with the lifetime budget where it is finite.

    Made of numbers and fixed words alone.
    """
    finite = [point for point in points if math.isfinite(point.epsilon)]
    if not finite:
        return ""
    start = finite[0].time.timestamp()
    span = max(finite[-1].time.timestamp() - start, 1e-9)
    most = max(point.epsilon for point in finite)
    top = budget if math.isfinite(budget) and budget <= 4 * max(most, 1e-9) else 1.1 * most
    top = max(top, most) or 1.0
    path, height = f"M0 {_HEIGHT}", float(_HEIGHT)
    for point in _thinned(finite):
        across = (point.time.timestamp() - start) / span * _WIDTH
        path += f" H{across:.1f}"
        height = _HEIGHT - point.epsilon / top * (_HEIGHT - 14)
        path += f" V{height:.1f}"
    path += f" H{_WIDTH}"
    line = ""
    if math.isfinite(budget) and budget <= top:
        y = _HEIGHT - budget / top * (_HEIGHT - 14)
        line = (
            f'<line class="budget" x1="0" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="0" y="{y - 3:.1f}">lifetime budget {budget:g}</text>'
        )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 14}" role="img" '
        f'aria-label="Total epsilon over time, now {epsilon_text(most, DIGITS)}">'
        f'<path class="area" d="{path} V{_HEIGHT} Z"/><path class="curve" d="{path}"/>{line}'
        f'<text x="0" y="{_HEIGHT + 12}">{day(finite[0].time)}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT + 12}" text-anchor="end">{day(finite[-1].time)}</text>'
        f'<text x="{_WIDTH}" y="{height - 4:.1f}" text-anchor="end">'
        f"{epsilon_text(most)}</text></svg>"
    )


def short(text: str, most: int = 24) -> str:
    """A long name without its middle: run ids often differ at the end."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}…{text[head + 1 - most :]}"


def _thinned(points: Sequence[Point], most: int = 600) -> Sequence[Point]:
    step = max(1, len(points) // most)
    return [*points[:-1:step], points[-1]]


def _newest(runs: Sequence[RunRow]) -> list[RunRow]:
    return sorted(runs, key=lambda row: row.last)[-MOST_RUNS:]


def _epsilon(value: float | None) -> str:
    return epsilon_text(value, DIGITS)


def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(epsilon=_epsilon, day=day, name=printable, short=short)
    environment.filters.update(duration=duration, energy=energy_text)
    source = importlib.resources.files("lorica.client.ledger.reports").joinpath(
        "templates/ledger.html.j2"
    )
    return environment.from_string(source.read_text(encoding="utf-8"))
