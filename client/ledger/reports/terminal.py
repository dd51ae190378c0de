"""A ledger on the terminal: what is spent, by run, by month, and a plot over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.text import Text

from lorica.client.ledger.reports.effort import Taken, in_all, name_of
from lorica.client.ledger.reports.summary import Point, Summary
from lorica.common.display.console import Console
from lorica.common.display.tables import Table
from lorica.common.display.text import printable
from lorica.common.display.wording import duration, energy_text, epsilon_text, left_text

DIGITS = 3
"""Decimals of every ε in a ledger's reports."""

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_HEIGHT = 10


def show(summary: Summary, console: Console, taken: Mapping[str, Taken] | None = None) -> None:
    """Print everything a site's operator asks first; ``taken``: what runs took, by name."""
    console.print(_totals(summary))
    if not summary.points:
        console.print("Nothing was ever charged.")
        return
    console.print(
        Text("\nspending by run", style="bold"), _run_table(summary, console.width), sep="\n"
    )
    console.print(Text("spending by month (UTC)", style="bold"), _month_table(summary), sep="\n")
    console.print(Text("total ε over time", style="bold"))
    width = max(20, min(100, console.width - 12))
    console.print(plot(summary.points, summary.budgets[-1][1].lifetime, width))
    if taken and in_all(taken, (row.run for row in summary.runs)):
        console.print(Text("what runs took here", style="bold"))
        console.print(_effort_table(summary, taken, console.width))
    if summary.refused:
        newest = summary.refused[-1]
        console.print(
            f"\nrefused for want of budget: {len(summary.refused)}, last on {day(newest.time)} "
            f"({printable(newest.budget)})",
            highlight=False,
        )


def plot(points: Sequence[Point], budget: float, width: int, height: int = _HEIGHT) -> Text:
    """Total ε after each charge as columns; time runs from the first charge to the last.

    Args:
        points: in time order, at least one; infinite ε are drawn at full height.
        budget: the lifetime budget, drawn as a line where it is finite and in reach.
        width: columns of the plot, characters.
        height: rows of the plot.
    """
    columns = _columns(points, width)
    finite = [value for value in columns if math.isfinite(value)]
    most = max(finite, default=0.0)
    top = budget if math.isfinite(budget) and budget <= 3 * max(most, 1e-9) else most
    top = max(top, most) or 1.0
    rows = Text()
    for row in range(height, 0, -1):
        label = top * row / height
        line = "".join(_cell(value / top * height - (row - 1)) for value in columns)
        at_budget = row == height and top == budget
        rows.append(f"{epsilon_text(label, DIGITS) if row in (1, height) else '':>8} ", style="dim")
        rows.append("│", style="dim")
        rows.append(line, style="cyan")
        rows.append("  ← lifetime budget\n" if at_budget else "\n", style="dim")
    first, last = day(points[0].time), day(points[-1].time)
    gap = max(1, width - len(first) - len(last))
    rows.append(f"{'':>8} └{'─' * width}\n{'':>10}{first}{' ' * gap}{last}", style="dim")
    return rows


def day(time: datetime | None) -> str:
    """A time as a date, UTC."""
    return "–" if time is None else time.strftime("%Y-%m-%d")


def _totals(summary: Summary) -> RenderableType:
    budgets = summary.budgets[-1][1] if summary.budgets else None
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    table.add_row("data set", Text(printable(summary.data_set)))
    table.add_row("unit of privacy", Text(f"{printable(summary.unit)}, at δ = {summary.delta:g}"))
    total = f"ε = {epsilon_text(summary.epsilon, DIGITS)}"
    table.add_row("spent in all", Text(total, style="bold"))
    rdp = epsilon_text(summary.rdp, DIGITS)
    table.add_row("by RDP", Text(f"ε = {rdp} (looser; for comparison)"))
    if summary.observers is not None:
        found = summary.observers
        for what, value in (
            ("to who sees sums", found.sums),
            ("and plans' colluders", found.colluding),
            ("if all others collude", found.alone),
        ):
            table.add_row(what, Text(f"ε = {epsilon_text(value, DIGITS)}"))
    if budgets is not None:
        counted = epsilon_text(summary.counted, DIGITS)
        counted += _of(summary.counted, budgets.lifetime)
        table.add_row("counted in all", Text(f"ε = {counted}"))
    if summary.period is not None and budgets is not None:
        spent = summary.period_epsilon
        line = f"ε = {epsilon_text(spent, DIGITS)}{_of(spent, budgets.period_epsilon)}"
        table.add_row(f"counted in {summary.period}", Text(line))
    if budgets is not None:
        table.add_row("budget of a run", Text(f"ε = {epsilon_text(budgets.run, DIGITS)}"))
    table.add_row("entries", Text(f"{summary.count}, newest {summary.head[:16]}…"))
    return Group(table)


def _of(spent: float | None, budget: float) -> str:
    if spent is None or not math.isfinite(budget):
        return " (no limit)"
    left = max(0.0, budget - spent)
    return f" of {epsilon_text(budget, DIGITS)}; {left_text(left, DIGITS)} left"


def _run_table(summary: Summary, width: int) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("run", overflow="ellipsis", no_wrap=True, max_width=max(8, width - 66))
    for name in ("first", "last"):
        table.add_column(name, no_wrap=True)
    for name in ("rounds", "lost", "refused", "ε", "by RDP"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary.runs:
        table.add_row(
            Text(printable(row.run)),
            day(row.first),
            day(row.last),
            *map(str, (row.rounds, row.unanswered, row.refused)),
            epsilon_text(row.epsilon, DIGITS),
            epsilon_text(row.rdp, DIGITS),
        )
    if any(row.unanswered for row in summary.runs):
        table.caption = "lost: charged, but no answer followed"
        table.caption_justify = "left"
    return table


def _month_table(summary: Summary) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold")
    table.add_column("month")
    table.add_column("charges", justify="right")
    table.add_column("ε of the month", justify="right")
    for row in summary.months:
        table.add_row(row.month, str(row.charges), epsilon_text(row.epsilon, DIGITS))
    return table


def _effort_table(summary: Summary, taken: Mapping[str, Taken], width: int) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("run", overflow="ellipsis", no_wrap=True, max_width=max(8, width - 56))
    for name in ("answers", "time", "processors", "energy"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in summary.runs:
        if found := taken.get(name_of(row.run)):
            times = map(duration, (found.seconds, found.cpu_seconds))
            energy = energy_text(found.joules)
            table.add_row(Text(printable(row.run)), str(found.answers), *times, energy)
    table.caption = "for this site alone; energy: of all of the machine's processors meanwhile"
    table.caption_justify = "left"
    return table


def _columns(points: Sequence[Point], width: int) -> list[float]:
    """Total ε at ``width`` moments, evenly spaced from the first charge to the last."""
    start = points[0].time.timestamp()
    span = points[-1].time.timestamp() - start
    found, index = [], 0
    for column in range(width):
        moment = start + span * (column + 1) / width
        while index + 1 < len(points) and points[index + 1].time.timestamp() <= moment + 1e-6:
            index += 1
        found.append(points[index].epsilon)
    return found


def _cell(fill: float) -> str:
    return _EIGHTHS[8 if math.isinf(fill) else max(0, min(8, round(8 * fill)))]
