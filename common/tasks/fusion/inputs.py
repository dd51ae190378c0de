"""A record's cells as numbers, beside what the encoder reads of it.

A column of numbers gives two: (x - center) / scale, cut to ±cut, and whether the cell was empty
(the first is then 0, the center). A column of categories gives one for each value, 1 for the
record's and 0 for all others, and one more for an empty cell. All are divided by √(number of
columns), so that a record's vector t has ‖t‖ ≤ max(cut, 1) whatever its cells are, and about the
length of a text's feature where they are usual. Every constant is the plan's: t is a function of
the record alone, so neighbouring data sets stay neighbours.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from lorica.common.data.records import Records
from lorica.common.data.table import bad_value, number_in, shown_cell
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.table import TablePlan
from lorica.common.tasks.inputs import Inputs

_NAMED = 5


@dataclass(frozen=True)
class WithTable:
    """Texts or images, and a table's numbers beside them."""

    base: Inputs
    """What the encoder reads."""
    table: torch.Tensor
    """float32, shape (N, K)."""

    @property
    def lengths(self) -> np.ndarray:
        """As of ``base``: the table's cost is not worth counting."""
        return self.base.lengths

    @property
    def sizes(self) -> np.ndarray:
        """As of ``base``: every table has the same shape."""
        return self.base.sizes

    @property
    def limit(self) -> int:
        """As of ``base``."""
        return self.base.limit

    def __len__(self) -> int:
        return len(self.base)

    def collate(self, rows: Iterable[int]) -> tuple[torch.Tensor, ...]:
        """As of ``base``: what the encoder reads of these rows."""
        return self.base.collate(rows)

    def table_of(self, rows: np.ndarray) -> torch.Tensor:
        """The table's numbers of these rows, shape (n, K)."""
        return self.table[torch.from_numpy(rows)]

    def digest(self) -> bytes:
        """SHA-256 of both."""
        found = hashlib.sha256(self.base.digest())
        found.update(repr(tuple(self.table.shape)).encode())
        found.update(self.table.contiguous().numpy().tobytes())
        return found.digest()


def table_values(plan: TablePlan, records: Records, where: str) -> torch.Tensor:
    """The records' cells as numbers, float32, shape (N, K); where the records have no table at
    all, every cell counts as empty.

    Args:
        plan: what the columns are called and hold.
        records: with these columns, and perhaps more.
        where: begins the messages: "Site a", "The test data".

    Raises:
        LoricaError: LOR-302 a column is missing, LOR-312 a cell is no number, or a value that the
            plan does not list.
    """
    found = np.zeros((len(records), plan.inputs), dtype=np.float32)
    at = 0
    for name, center, scale in zip(plan.columns, plan.centers, plan.scales, strict=True):
        for row, cell in enumerate(_cells(records, name, where)):
            if not cell:
                found[row, at + 1] = 1.0
                continue
            try:
                value = number_in(cell)
            except ValueError as error:
                raise bad_value(where, row, name, str(error)) from None
            found[row, at] = min(max((value - center) / scale, -plan.cut), plan.cut)
        at += 2
    for name, values in plan.choices.items():
        place = {value: at + number for number, value in enumerate([*values, ""])}
        for row, cell in enumerate(_cells(records, name, where)):
            if cell not in place:
                listed = ", ".join(map(repr, values[:_NAMED])) + ", …" * (len(values) > _NAMED)
                problem = f"is {shown_cell(cell)}; the plan's table.categories lists {listed}"
                raise bad_value(where, row, name, problem)
            found[row, place[cell]] = 1.0
        at += len(values) + 1
    return torch.from_numpy(found / np.float32(math.sqrt(max(1, len(plan.names)))))


def require_table(plan: TablePlan, records: Records, where: str) -> None:
    """Return if the records have every column of the plan's table. Raises LOR-302."""
    has = records.table.names if records.table is not None else []
    for name in plan.names:
        if name not in has:
            raise LoricaError(
                Code.DATA_COLUMN,
                f"{where} has no column '{name}', which the plan's section table names; "
                + (f"its further columns are: {', '.join(has)}." if has else "it has none beside."),
                mend="A site names the columns that plans may read in data.columns of site.toml.",
            )


def _cells(records: Records, name: str, where: str) -> list[str]:
    if records.table is None:
        return [""] * len(records)
    if name not in records.table.names:
        raise LoricaError(Code.DATA_COLUMN, f"{where} has no column '{name}'.")
    return records.table.cells(name)
