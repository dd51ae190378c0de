"""Columns of a table that stand beside texts or images: the cells, as the source has them.

What they mean, a plan says (:mod:`lorica.common.plan.table`): a site keeps the cells of the
columns that it offers before it has seen any plan.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from lorica.common.errors import Code, LoricaError

NUMBER = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?"
"""A number as a cell writes it, for Python's expressions and RE2's. "NaN", "inf", "1_000" and
decimal commas are none."""

LONGEST = 200
"""Most bytes of a cell in UTF-8; what is longer is a text."""

_NUMBER = re.compile(NUMBER, re.ASCII)
_SHOWN = 40


class Table:
    """Cells of some columns, one per record in each; an empty cell is a missing value."""

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        """``columns``: name -> UTF-8 bytes without blanks at the ends, shape (N,), dtype S; at
        least one column, all equally long."""
        self._columns = dict(columns)

    @classmethod
    def of(cls, cells: Mapping[str, Sequence[str]], where: str, *, before: int = 0) -> Table:
        """A table of texts.

        Args:
            cells: name -> one text per record; at least one column.
            where: begins the message.
            before: records of the same source that came earlier, for the message.

        Raises:
            LoricaError: LOR-312 a cell is longer than ``LONGEST``.
        """
        found = {}
        for name, texts in cells.items():
            encoded = [text.strip().encode(errors="surrogateescape") for text in texts]
            for row, cell in enumerate(encoded):
                if len(cell) > LONGEST:
                    raise bad_value(
                        where, before + row, name, f"has {len(cell):,} bytes; at most {LONGEST}"
                    )
            found[name] = np.array(encoded, dtype=np.bytes_) if encoded else np.array([], "S1")
        return cls(found)

    @classmethod
    def joined(cls, parts: Sequence[Table]) -> Table:
        """The records of all parts, which have the same columns; at least one part."""
        names = parts[0].names
        return cls(
            {name: np.concatenate([part._columns[name] for part in parts]) for name in names}
        )

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return list(self._columns)

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Table):
            return NotImplemented
        return self.names == other.names and all(
            np.array_equal(cells, other._columns[name]) for name, cells in self._columns.items()
        )

    __hash__ = None  # type: ignore[assignment]

    def cells(self, name: str) -> list[str]:
        """One text per record."""
        return [cell.decode(errors="replace") for cell in self._columns[name].tolist()]

    def row(self, row: int) -> list[bytes]:
        """A record's cells, in the order of the columns."""
        return [bytes(cells[row]) for cells in self._columns.values()]

    def take(self, rows: Sequence[int]) -> Table:
        """The records of these rows, in this order."""
        chosen = np.asarray(rows, dtype=np.int64)
        return Table({name: cells[chosen] for name, cells in self._columns.items()})


def number_in(cell: str) -> float:
    """The number that a cell writes.

    Raises:
        ValueError: no number, or too large for one; with a reason for the message.
    """
    if _NUMBER.fullmatch(cell) is None:
        raise ValueError(f"is {shown_cell(cell)}, which is no number")
    value = float(cell)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"is {shown_cell(cell)}, which is beyond every number that is kept")
    return value


def bad_value(where: str, row: int, column: str, problem: str) -> LoricaError:
    """LOR-312 for a record's cell; rows count from 0."""
    return LoricaError(
        Code.DATA_VALUE, f"{where}: record {row + 1}: the value in column '{column}' {problem}."
    )


def shown_cell(cell: str) -> str:
    """A cell in quotes, cut to what a message bears."""
    return repr(cell if len(cell) <= _SHOWN else cell[:_SHOWN] + "…")
