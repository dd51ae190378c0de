"""Tables that are whole at any width: cells are folded, never cut; a narrow screen gets a list."""

from __future__ import annotations

from typing import Any

from rich.console import (
    Console,  # noqa: TID251 - what rich itself gives
    ConsoleOptions,
    RenderResult,
)
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

_LEAST = 10
"""Characters of a column below which folded cells can no longer be read."""


class Table(RichTable):
    """Rich's table, with cells that are folded where they do not fit. Where even that leaves
    columns of less than a few characters, every row is a paragraph of "header  value" lines."""

    def __init__(self, *headers: Any, **how: Any) -> None:
        """As rich's."""
        super().__init__(**how)
        for header in headers:
            self.add_column(header)

    def add_column(self, header: Any = "", *arguments: Any, **how: Any) -> None:
        """As rich's, but text is folded unless ``overflow`` says otherwise."""
        how.setdefault("overflow", "fold")
        super().add_column(header, *arguments, **how)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, or its rows one below the other."""
        if self._needed(console, options) <= options.max_width or len(self.columns) < 2:
            yield from super().__rich_console__(console, options)
            return
        if self.title:
            yield Text.assemble((str(self.title), "bold"))
        cells = [list(column.cells) for column in self.columns]
        headers = [column.header if self.show_header else "" for column in self.columns]
        for row in range(len(self.rows)):
            for header, column in zip(headers, cells, strict=True):
                yield from self._line(header, column[row])
            yield Segment.line()

    def _line(self, header: Any, cell: Any) -> RenderResult:
        shown = Text(cell) if isinstance(cell, str) else cell
        name = Text(header) if isinstance(header, str) else header
        if not isinstance(shown, Text):
            yield shown
        elif shown.plain.strip():
            name.stylize("bold")
            both = Text.assemble(name, "  ", shown) if name.plain else shown
            both.overflow, both.no_wrap = "fold", False
            yield both

    def _needed(self, console: Console, options: ConsoleOptions) -> int:
        """The width at which every column has the few characters that it needs."""
        wide = options.update(max_width=10_000)
        widths = [self._measure_column(console, wide, column) for column in self.columns]
        return sum(min(found.maximum, _LEAST) for found in widths) + self._extra_width

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """As rich's, within the console's width."""
        return super().__rich_measure__(console, options).with_maximum(options.max_width)
