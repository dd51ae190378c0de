"""What divides the fields of a row: as the first line says, or as the wanted columns do."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection

_SAID = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
_KNOWN = ",;\t|"


def said_delimiter(line: str) -> str:
    """The delimiter that a line ``sep=;`` names, as Excel writes it first; empty: it is none."""
    found = _SAID.fullmatch(line)
    return found[1] if found else ""


def delimiter_of(header: str, own: str, wanted: Collection[str] = ()) -> str:
    """The delimiter of a table with this header.

    Its own where that divides the header into the wanted columns, or another that does; else its
    own if it divides the header at all, else the one that divides it into most.

    Args:
        header: the first line.
        own: "," or, of a .tsv file, a tab.
        wanted: names that the header should have.
    """
    fields = {mark: fields_of(header, mark) for mark in dict.fromkeys([own, *_KNOWN])}
    for mark, names in fields.items():
        if wanted and set(wanted) <= set(names):
            return mark
    if len(fields[own]) > 1:
        return own
    return max(fields, key=lambda mark: len(fields[mark]))


def fields_of(line: str, delimiter: str) -> list[str]:
    """The fields of one line; none where its quotes do not close."""
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []
