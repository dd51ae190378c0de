"""The overview on the terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from lorica.client.data.check.overview import NOTICE, Overview
from lorica.client.data.check.tallies import Groups
from lorica.common.data.names.alike import shown_spelling
from lorica.common.display.console import Console
from lorica.common.display.tables import Table
from lorica.common.display.text import printable

_SHOWN = 25
_CELL = 60


def show(found: Overview, console: Console) -> None:
    """Print the overview; its notice is the first line."""
    console.print(Text(NOTICE, style="bold red"), soft_wrap=True)
    console.print(Group(*_parts(found)))


def _parts(found: Overview) -> list[RenderableType]:
    parts: list[RenderableType] = [_figures(found), _columns(found), _labels(found)]
    parts += [_alike(found)] if found.alike else []
    parts += [_table(found)] if found.table else []
    if found.suspects:
        table = Table("suspicion", "records", "why", title="Leak suspects", title_justify="left")
        for suspect in found.suspects:
            table.add_row(suspect.what, f"{suspect.records:,}", _name(suspect.detail, 200))
        parts.append(table)
    else:
        parts.append(Text("No leak suspects.", style="green"))
    return parts


def _figures(found: Overview) -> Table:
    table = Table(box=None, show_header=False, title=_name(found.source), title_justify="left")
    table.add_column(style="dim")
    table.add_column()
    table.add_row("records", f"{found.records:,}")
    table.add_row("labels", f"{len(found.labels):,}")
    for what, lengths in (
        ("characters", found.characters),
        ("tokens (sample)", found.tokens),
        ("image sides, pixels", found.images),
    ):
        if lengths:
            table.add_row(what, ", ".join(f"{name} {value:,}" for name, value in lengths.items()))
    if found.duplicates:
        table.add_row("equal in text and label", _repeated(found.duplicates))
    if found.duplicates_in_units:
        table.add_row("… within one unit", _repeated(found.duplicates_in_units))
    if found.units:
        units = found.units
        crowds = ", ".join(f"{count:,} with more than {n}" for n, count in units.sizes.items())
        table.add_row("units", f"{_about(units)}{units.keys:,}: {crowds}; most {units.largest:,}")
    ids = found.ids_alike
    if ids and ids.one:
        table.add_row("… written in several ways", f"{ids.one:,}: taken as one unit each")
    if ids and ids.alike:
        examples = _name(f"{ids.alike:,}, such as {'; '.join(ids.examples)}: units of their own")
        table.add_row("… that only look alike", examples)
    for name, (least, most) in found.dates.items():
        table.add_row(f"dates in {_name(name)}", f"{least} to {most}")
    return table


def _repeated(groups: Groups) -> str:
    return f"{_about(groups)}{groups.repeated:,} beyond the first; most alike {groups.largest:,}"


def _about(groups: Groups) -> str:
    return "" if groups.exact else "about "


def _columns(found: Overview) -> Table:
    table = Table("column", "empty", "", title="Columns", title_justify="left")
    for name, count in found.missing.items():
        share = f"{count / found.records:.1%}" if count else ""
        table.add_row(_name(name), f"{count:,}", share)
    return table


def _labels(found: Overview) -> Table:
    table = Table("label", "records", "", title="Labels", title_justify="left")
    for name, count in list(found.labels.items())[:_SHOWN]:
        table.add_row(_name(name), f"{count:,}", f"{count / found.records:.1%}")
    if len(found.labels) > _SHOWN:
        rest = list(found.labels.values())[_SHOWN:]
        table.add_row(f"… {len(rest):,} more", f"{sum(rest):,}", "")
    return table


def _alike(found: Overview) -> Table:
    title = "Labels that only look alike: correct them, or set data.alike in site.toml"
    table = Table("spellings", "records", title=title, title_justify="left")
    for group in found.alike[:_SHOWN]:
        named = ", ".join(map(shown_spelling, group))
        table.add_row(_name(named, 2 * _CELL), ", ".join(f"{n:,}" for n in group.values()))
    return table


def _table(found: Overview) -> Table:
    table = Table(
        *("data.columns", "empty", "numbers", "least", "mean", "spread", "greatest", "values"),
        title="Beside text or image",
        title_justify="left",
    )
    for name, column in found.table.items():
        named = [column.least, column.mean, column.spread, column.greatest]
        figures = [f"{figure:.6g}" for figure in named] if column.numbers else [""] * 4
        counted = [f"{value} {count:,}" for value, count in column.values.items()]
        values = ", ".join(counted) or "many"
        if column.numbers and column.numbers + column.empty < column.records:
            values = f"NOT ALL NUMBERS, such as {column.example!r}"
        if column.too_long:
            values = f"{column.too_long:,} TOO LONG for a table"
        share = f"{column.empty / column.records:.1%}"
        table.add_row(_name(name), share, f"{column.numbers:,}", *figures, _name(values, 3 * _CELL))
    return table


def _name(text: str, most: int = _CELL) -> Text:
    shown = printable(text)
    return Text(shown if len(shown) <= most else f"{shown[: most - 1]}…")
