"""Cells of a CSV file that somebody will open in a spreadsheet."""

from __future__ import annotations

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def harmless(text: str) -> str:
    """The text, which no spreadsheet takes for a formula: names come from others."""
    return f"'{text}" if text.startswith(_FORMULA) else text
