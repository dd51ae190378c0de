"""The same metrics group by group, so that a good mean hides no group it does not hold for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorica.common.saved.quality.answers import Answers
from lorica.common.saved.quality.calibration import calibration_error
from lorica.common.saved.quality.metrics import Estimate, estimates


@dataclass(frozen=True)
class Group:
    """The records with one value of a column."""

    column: str
    value: str
    """As in the file; "" where it is missing."""
    records: int
    metrics: dict[str, Estimate]
    calibration_error: float


def by_group(
    given: Answers,
    column: str,
    values: Sequence[str],
    *,
    draws: int,
    seed: int,
    units: Sequence[str] | None = None,
) -> list[Group]:
    """Accuracy, balanced accuracy and macro F1 of every group, the largest group first.

    Args:
        given: the answers.
        column: name of the column that makes the groups.
        values: its cell of every record.
        draws: of the bootstrap.
        seed: of the draws.
        units: the unit of every record, where records belong together.
    """
    cells = np.asarray(values, dtype=object)
    found = []
    for value in sorted(set(values)):
        rows = np.flatnonzero(cells == value)
        part = given.take(rows)
        own = [units[row] for row in rows.tolist()] if units is not None else None
        metrics = estimates(
            part,
            draws=draws,
            seed=seed,
            units=own,
            metrics=("accuracy", "balanced accuracy", "macro F1"),
        )
        found.append(Group(column, value, len(rows), metrics, calibration_error(part)))
    return sorted(found, key=lambda group: (-group.records, group.value))
