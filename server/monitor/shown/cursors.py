"""Where a page of a list ended, as text in an address."""

from __future__ import annotations

from fastapi import HTTPException

Cursor = tuple[float, int]


def written(cursor: Cursor | None) -> str | None:
    """The cursor as text; None on the last page."""
    return None if cursor is None else f"{cursor[0]!r}_{cursor[1]}"


def read(text: str | None) -> Cursor | None:
    """The inverse. Raises HTTP 422 for anything else."""
    if not text:
        return None
    try:
        at, _, key = text.partition("_")
        return float(at), int(key)
    except ValueError:
        raise HTTPException(422, "`after` is not one that this list gave.") from None
