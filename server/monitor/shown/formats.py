"""How figures are written on pages: filters of the templates."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from typing import Any

from lorica.common.display.wording import capitalise, epsilon_text, is_share, metric_name

NOTHING = "–"
_CLASSES = (100, 1_000, 10_000, 100_000, 1_000_000)


def percent(value: float | None, digits: int = 1) -> str:
    """0.8031 as 80.3 %."""
    return NOTHING if value is None else f"{100 * value:.{digits}f}\u2009%"


def score(value: float | None, name: str) -> str:
    """A task's headline metric: a share in percent, any other as it is."""
    return percent(value) if is_share(name) else figure(value)


def figure(value: float | None, digits: int = 3) -> str:
    """A number with so many significant digits."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "∞"
    if value == 0:
        return "0"
    if abs(value) >= 10_000 or abs(value) < 0.001:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def budget(value: float | None) -> str:
    """A plan's ε; None is no privacy."""
    return "no privacy" if value is None else f"{value:g}"


def size(value: float | None) -> str:
    """Bytes with a decimal unit."""
    if value is None:
        return NOTHING
    if value < 1000:
        return f"{value:.0f}\u2009B"
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 999.5 or unit == "TB":
            return f"{value:.{1 if value < 99.95 else 0}f}\u2009{unit}"
    raise AssertionError("unreachable")


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min, 3 d 4 h."""
    if seconds is None:
        return NOTHING
    if seconds < 10:
        return f"{seconds:.1f}\u2009s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}\u2009s"
    if whole < 3600:
        return f"{whole // 60}\u2009min {whole % 60:02d}\u2009s"
    if whole < 86400:
        return f"{whole // 3600}\u2009h {whole % 3600 // 60:02d}\u2009min"
    return f"{whole // 86400}\u2009d {whole % 86400 // 3600}\u2009h"


def moment(at: float | None) -> str:
    """A time as 2026-03-01 14:05, UTC."""
    return NOTHING if at is None else f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M}"


def clock(at: float) -> str:
    """A time of day as 14:05:09, UTC."""
    return f"{datetime.fromtimestamp(at, UTC):%H:%M:%S}"


def iso(at: float) -> str:
    """A time for machines."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def ago(at: float | None) -> str:
    """How long ago a time was, in one unit."""
    if at is None:
        return "never"
    seconds = max(0.0, time.time() - at)
    for limit, unit, word in ((90, 1, "s"), (5400, 60, "min"), (129600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.0f}\u2009{word} ago"
    return f"{seconds / 86400:.0f}\u2009d ago"


def size_class(records: int) -> str:
    """A data set's size as a class: what a site declares is public, its exact count need not be."""
    if records <= 0:
        return "not declared"
    for limit in _CLASSES:
        if records < limit:
            return f"under {limit:,}"
    return f"{_CLASSES[-1]:,} or more"


def words(name: str) -> str:
    """A name of code as people write it: macro_f1 as macro F1."""
    return metric_name(name)


def plain(value: Any) -> str:
    """A value of a plan as one reads it."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(plain(item) for item in value) or "none"
    return str(value) if value != "" else NOTHING


FILTERS = {
    found.__name__: found
    for found in (
        *(percent, figure, budget, size, duration),
        *(score, moment, clock, iso, ago, size_class, words, capitalise, plain),
    )
} | {"epsilon": epsilon_text}
