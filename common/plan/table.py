"""The section [table] of the plan: columns that stand beside a text or an image.

Every constant here is public. Centres, scales and values are what the people who write the plan
know of such records in general (an age is about 50, give or take 20), never figures of the
sites' own records, which would leave them without noise and without a charge.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from lorica.common.config import Positive, Section

MOST_INPUTS = 4096
"""Most numbers that a table can become."""


def _named(names: list[str]) -> list[str]:
    if any(not name or name != name.strip() for name in names):
        raise ValueError("a column's name is empty, or begins or ends with a blank")
    return names


def _finite(values: list[float]) -> list[float]:
    if not all(map(math.isfinite, values)):
        raise ValueError("must be finite")
    return values


class TablePlan(Section):
    """Columns beside the text or the image, for the tasks that read a table, and their head."""

    columns: Annotated[list[str], AfterValidator(_named)] = []
    """Names of columns that hold numbers. A value x becomes (x - center) / scale, cut to ±cut; an
    empty cell becomes 0, and a further number says whether it was empty."""

    centers: Annotated[list[float], AfterValidator(_finite)] = []
    """Of every column, in its unit: what is usual. A public constant, never computed from the
    sites' records."""

    scales: Annotated[list[float], AfterValidator(_finite)] = []
    """Of every column, in its unit: how far from the center is usual; above 0, public."""

    cut: Positive = 3.0
    """Bound on a scaled value, in scales; values beyond it count as if they lay on it."""

    categories: list[str] = []
    """Columns that hold one of some values, which each get a number of their own, as
    "name = first | second"; other values are refused, an empty cell is a further one."""

    hidden: int = Field(16, ge=1, le=256)
    """Width of the head's hidden layer, which reads table and text or image together."""

    @model_validator(mode="after")
    def _consistent(self) -> TablePlan:
        for key, values in (("centers", self.centers), ("scales", self.scales)):
            if len(values) != len(self.columns):
                raise ValueError(
                    f"table.{key} must have one number for each of the {len(self.columns)} columns "
                    f"of table.columns, got {len(values)}"
                )
        if any(scale <= 0 for scale in self.scales):
            raise ValueError("table.scales must be above 0")
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise ValueError(f"table.columns and table.categories name '{twice[0]}' twice")
        if self.inputs > MOST_INPUTS:
            raise ValueError(f"the table becomes {self.inputs} numbers; at most {MOST_INPUTS}")
        return self

    @property
    def choices(self) -> dict[str, list[str]]:
        """Column -> its values, of ``categories``.

        Raises:
            ValueError: an entry is not of the form "name = first | second".
        """
        found: dict[str, list[str]] = {}
        for entry in self.categories:
            name, equals, values = (part.strip() for part in entry.partition("="))
            listed = [value.strip() for value in values.split("|")]
            if not name or not equals or len(listed) < 2 or not all(listed):
                raise ValueError(
                    f'table.categories: "{entry}" is not of the form "name = first | second"'
                )
            if len(set(listed)) < len(listed) or name in found:
                raise ValueError(f'table.categories: "{entry}" names something twice')
            found[name] = listed
        return found

    @property
    def names(self) -> list[str]:
        """All columns: those of numbers, then those of ``categories``."""
        return [*self.columns, *self.choices]

    @property
    def inputs(self) -> int:
        """How many numbers a record's cells become, K: two for a column of numbers, and one more
        than it has values for a column of ``categories``."""
        return 2 * len(self.columns) + sum(len(values) + 1 for values in self.choices.values())
