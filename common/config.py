"""What sections of the plan are made of: the base model, and kinds of numbers and names."""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, field_validator


def _above_zero(value: float) -> float:
    if math.isnan(value) or value <= 0:
        raise ValueError("must be above 0")
    return value


def _finite(value: float) -> float:
    if math.isinf(value):
        raise ValueError("must be finite")
    return value


def distinct(names: list[str]) -> list[str]:
    if not all(name.strip() for name in names):
        raise ValueError("a label name is empty")
    if any(name != name.strip() for name in names):
        raise ValueError("a label name begins or ends with a blank")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        more = ", ..." if len(twice) > 5 else ""
        raise ValueError(f"label names occur twice: {', '.join(twice[:5])}{more}")
    return names


def _window(values: list[float]) -> list[float]:
    if values and (len(values) != 2 or not all(map(math.isfinite, values)) or values[1] <= 0):
        raise ValueError("must be empty, or centre and width, the width above 0")
    return values


PositiveOrInf = Annotated[float, AfterValidator(_above_zero)]
Positive = Annotated[PositiveOrInf, AfterValidator(_finite)]
Window = Annotated[list[float], AfterValidator(_window)]


class Section(BaseModel):
    """A section of the plan: immutable, strict about unknown keys, documented per field."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """No field is a truth value (pydantic would read true as 1), and text is Unicode."""
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, bool):
                raise ValueError("must not be true or false")
            if isinstance(item, str) and any("\ud800" <= letter <= "\udfff" for letter in item):
                raise ValueError("must be Unicode text, without lone surrogates")
        return value
