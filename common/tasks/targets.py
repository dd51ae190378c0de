"""Targets that records write as text: numbers, sets of labels, lists as JSON.

Sentences name records and values, so they stay at the machine that holds the records
(:mod:`lorica.common.errors`).
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from lorica.common.data.table import NUMBER
from lorica.common.errors import Code, LoricaError

_NUMBER = re.compile(NUMBER, re.ASCII)
_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+", re.ASCII)
_SHOWN = 60  # characters of a value in a message


def bad_target(where: str, row: int, problem: str, *, mend: str | None = None) -> LoricaError:
    """LOR-311 for the record of this row, counted from 0."""
    return LoricaError(Code.DATA_TARGET, f"{where}: record {row + 1}: {problem}.", mend=mend)


def shown(value: object) -> str:
    """A value in quotes, cut to what a message bears."""
    text = str(value)
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def number(text: str, minimum: float, maximum: float) -> float:
    """The number in a cell.

    Raises:
        ValueError: no number, not finite, or outside the bounds; with a reason for the message.
    """
    bare = text.strip()
    try:
        value = float(bare)
    except ValueError:
        hint = "; a decimal mark is a point" if _COMMA.fullmatch(bare) else ""
        raise ValueError(f"the target {shown(text)} is no number{hint}") from None
    if not math.isfinite(value):
        raise ValueError(f"the target {shown(text)} is not finite")
    if _NUMBER.fullmatch(bare) is None:  # Python takes 1_0 for 10, and digits of every script
        raise ValueError(f"the target {shown(text)} is no number as files write them")
    if not minimum <= value <= maximum:
        raise ValueError(
            f"the target {value:g} is outside task.minimum to task.maximum, {minimum:g} to "
            f"{maximum:g}"
        )
    return value


def label_set(text: str, separator: str) -> tuple[str, ...]:
    """The labels in a cell: a JSON list of texts, or labels divided by a separator; "[]" for none.

    Raises:
        ValueError: neither, or an empty or repeated label; with a reason for the message.
    """
    if text.lstrip().startswith("["):
        names = json_list(text, "labels")
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"{shown(text)} is no list of label names")
    else:
        names = text.split(separator)
    found = tuple(name.strip() for name in names)
    if not all(found):
        raise ValueError(f'a label in {shown(text)} is empty; write "[]" if none applies')
    if len(set(found)) < len(found):
        raise ValueError(f"{shown(text)} names a label twice")
    return found


def json_list(text: str, what: str) -> list[Any]:
    """The list in a cell. Raises ValueError, with a reason for the message, if it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"the {what} {shown(text)} are no JSON") from None
    if not isinstance(found, list):
        raise ValueError(f"the {what} {shown(text)} are no list")
    return found
