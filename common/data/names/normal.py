"""One normal form for cells that name something: whose record it is, its label, its site.

Formats write one value in many ways: 1000 is ``1000`` in a CSV file, ``1000.0`` where the column
had a gap, ``1000.00`` as a decimal of a database; midnight of a day is a date in one and a time in
another. Taken as they stand they would be two patients, and ε would hold for half of each.

Formal guarantee:
    :func:`id_form` is a function of one cell alone, so neighbouring data sets stay neighbours. It
    only ever joins ids, never divides one: a unit by normal forms holds all records of every unit
    by cells, and (ε, δ) for the former is (ε, δ) for each of the latter.

Leading zeros and case tell ids apart: "007" is not 7, and many systems' ids differ in case alone.
Texts that look like numbers but are codes stay: only what programs write as a number is one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-][0-9]+)?", re.ASCII)
"""As programs write numbers: an exponent has its sign (1e+16), so that codes such as 1E50 of
ICD-11 are none."""

_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]*))\.0", re.ASCII)
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}:[0-9]{2}(?::[0-9]{2})?)(?:\.([0-9]{1,9}))?"
    r"(Z|[+-][0-9]{2}(?::?[0-9]{2})?)?",
    re.ASCII,
)
_LONGEST = 40  # digits that a number is written out to
_TRUTH = {"True": "true", "TRUE": "true", "False": "false", "FALSE": "false"}
BLANKS = " \t\r\n\f\v"
"""Blanks that are no part of a label when they stand at its ends."""


def number_form(text: str) -> str:
    """A number as programs write it in its plain form: no exponent, no zeros that say nothing.

    Any other text comes back as it is: 1000.0 and 1e+3 give 1000, 1.50 gives 1.5, "007" itself.
    """
    if _NUMBER.fullmatch(text) is None:
        return text
    value = Decimal(text)
    if not value:
        return "0"
    if abs(value.adjusted()) > _LONGEST:
        return text
    plain = f"{value:f}"
    return plain.rstrip("0").rstrip(".") if "." in plain else plain


def time_form(text: str) -> str:
    """A day and time in ISO 8601: in UTC where a zone is named, the day alone for midnight of no
    zone, no fraction that is zero. Any other text comes back as it is."""
    found = _TIME.fullmatch(text)
    if found is None:
        return text
    day, clock, fraction, zone = found.groups()
    fraction = (fraction or "").rstrip("0")
    clock = clock if len(clock) == 8 else f"{clock}:00"
    if zone:
        offset = "+00:00" if zone == "Z" else zone
        try:
            moment = datetime.fromisoformat(f"{day}T{clock}{offset}").astimezone(UTC)
        except (ValueError, OverflowError):  # no such day or hour
            return text
        day, clock, zone = f"{moment:%Y-%m-%d}", f"{moment:%H:%M:%S}", "Z"
    elif clock == "00:00:00" and not fraction:
        return day
    return f"{day}T{clock}{'.' if fraction else ''}{fraction}{zone or ''}"


def value_form(text: str) -> str:
    """The normal form of a cell that its source's type says is a number or a time."""
    return time_form(number_form(text))


def id_form(text: str) -> str:
    """The normal form of a cell that says whose record it is: NFC, without invisible characters
    and blanks at its ends, numbers, times and truth values in one form each."""
    bare = _visible(unicodedata.normalize("NFC", text)).strip()
    return _TRUTH.get(bare) or value_form(bare)


def label_form(text: str) -> str:
    """The normal form of a label or a site's name: without ASCII blanks at its ends; 1.0, as
    programs write a whole number that was kept as a fraction, is 1; times and truth values in one
    form each. Other digits stay: 250.00 and 250 are two codes of ICD-9."""
    bare = text.strip(BLANKS)
    whole = _WHOLE.fullmatch(bare)
    if whole is not None:
        return "0" if whole[1] == "-0" else whole[1]
    return _TRUTH.get(bare) or time_form(bare)


def alike_key(text: str) -> str:
    """What labels share that only look alike: one case, Unicode's compatible forms as one (NFKC),
    nothing invisible, runs of blanks as one, numbers in their plain form."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    bare = " ".join(_visible(folded).split())
    return number_form(bare)


def tidy(text: str) -> str:
    """The text as people would write it: composed, nothing invisible, single blanks."""
    return " ".join(_visible(unicodedata.normalize("NFC", text)).split())


_SCIENTIFIC = re.compile(r"\s*-?[0-9]+(\.[0-9]+)?[eE]\+[0-9]+\s*", re.ASCII)
_FRACTION = re.compile(r"\s*-?[0-9]{16,}\.0\s*", re.ASCII)
_EXACT = 2**53  # whole numbers beyond it are not all there among fractions of 64 bits


def lost_digits(text: str) -> bool:
    """Whether an id is a number of which digits are gone: spreadsheets write 123456789012 as
    1.23457E+11, and fractions hold whole numbers up to 2^53 alone."""
    if _SCIENTIFIC.fullmatch(text):
        return True
    return _FRACTION.fullmatch(text) is not None and abs(Decimal(text.strip())) >= _EXACT


def fraction_form(text: str) -> str:
    """As :func:`number_form` of a fraction, as programs write it; but one of which digits may be
    gone stays in scientific notation, or with its .0, so that it can be told."""
    return text if lost_digits(text) and abs(Decimal(text)) >= _EXACT else number_form(text)


def forms(cells: Iterable[str], form: Callable[[str], str]) -> list[str]:
    """``form`` of every cell, each distinct one computed once."""
    known: dict[str, str] = {}
    found = []
    for cell in cells:
        if cell not in known:
            known[cell] = form(cell)
        found.append(known[cell])
    return found


def _visible(text: str) -> str:
    """Without format characters (zero width, direction marks, a stray byte order mark)."""
    if text.isascii():
        return text
    return "".join(c for c in text if unicodedata.category(c) != "Cf")
