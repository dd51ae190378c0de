"""What the columns of data.columns hold, for the private overview: numbers, categories, neither."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from lorica.common.data.table import LONGEST, NUMBER

if TYPE_CHECKING:
    import pyarrow as pa

MOST_VALUES = 20
"""Columns with more different values are no columns of categories."""

_COUNTED = 2_000


@dataclass
class ColumnFigures:
    """One column; its name is the plan's."""

    records: int = 0
    empty: int = 0
    numbers: int = 0
    """Cells that are numbers as a plan's table.columns takes them."""
    example: str = ""
    """A cell that is neither a number nor empty."""
    too_long: int = 0
    """Cells longer than a table's cells may be."""
    least: float = math.inf
    greatest: float = -math.inf
    mean: float = 0.0
    spread: float = 0.0
    """Standard deviation of the numbers."""
    values: dict[str, int] = field(default_factory=dict)
    """Value -> records, most frequent first, where there are at most ``MOST_VALUES``."""


class TableFigures:
    """Counts over a stream of batches."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        """``columns``: the plan's name -> the source's."""
        self._columns = columns
        self._found = {name: ColumnFigures() for name in columns}
        self._squares = dict.fromkeys(columns, 0.0)  # summed squares of distances from the mean
        self._values: dict[str, Counter[str]] = {name: Counter() for name in columns}

    def add(self, arrays: Mapping[str, pa.Array]) -> None:
        """Count a batch of string columns by the source's names."""
        for name, column in self._columns.items():
            self._add(name, arrays[column])

    def _add(self, name: str, cells: pa.Array) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        found, cells = self._found[name], pc.utf8_trim_whitespace(cells)
        found.records += len(cells)
        filled = cells.filter(pc.not_equal(cells, ""))
        found.empty += len(cells) - len(filled)
        found.too_long += pc.sum(pc.greater(pc.binary_length(filled), LONGEST)).as_py() or 0
        is_number = pc.match_substring_regex(filled, f"^(?:{NUMBER})$")
        others = filled.filter(pc.invert(is_number))
        if len(others) and not found.example:
            found.example = others[0].as_py()[:LONGEST]
        if len(self._values[name]) <= _COUNTED:
            counted = pc.value_counts(filled)
            pairs = zip(counted.field(0).to_pylist(), counted.field(1).to_pylist(), strict=True)
            self._values[name].update(dict(pairs))
        bare = pc.replace_substring_regex(filled.filter(is_number), r"^\+", "")
        numbers = pc.cast(bare, pa.float64()).to_numpy(zero_copy_only=False)
        finite = np.isfinite(numbers)
        if not finite.all() and not found.example:
            found.example = bare[int(np.argmin(finite))].as_py()
        numbers = numbers[finite]
        if len(numbers):
            # Chan et al. 1979: means and squares of two sets are those of their union.
            count, mean = len(numbers), float(numbers.mean())
            apart, whole = mean - found.mean, found.numbers + count
            self._squares[name] += float(((numbers - mean) ** 2).sum())
            self._squares[name] += apart**2 * found.numbers * count / whole
            found.mean += apart * count / whole
            found.numbers = whole
            found.least = min(found.least, float(numbers.min()))
            found.greatest = max(found.greatest, float(numbers.max()))

    def figures(self) -> dict[str, ColumnFigures]:
        """Of every column, by the plan's name."""
        for name, found in self._found.items():
            if found.numbers:
                found.spread = math.sqrt(self._squares[name] / found.numbers)
            else:
                found.least = found.greatest = 0.0
            if len(self._values[name]) <= MOST_VALUES:
                found.values = dict(self._values[name].most_common())
        return self._found
