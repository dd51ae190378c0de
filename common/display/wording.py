"""Figures in words and units, as every view of a run shows them."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal

NO_PRIVACY = "NO PRIVACY (ε = ∞)"

_LARGE = 1e6  # an ε that protects nothing: its decimals would only take room
_NOT_SHARES = frozenset({"loss", "perplexity", "mse", "rmse", "mae", "r2"})
_NAMES = {"r2": "R²", "mse": "squared error", "mae": "absolute error"}


def epsilon_text(value: float | None, digits: int = 2) -> str:
    """An ε with at most so many decimals, rounded up: a guarantee is never shown as better.

    From a million on it has four significant digits; None, where no ε is known, is "–".
    """
    return _rounded(value, digits, ROUND_CEILING)


def left_text(value: float | None, digits: int = 2) -> str:
    """What is left of a budget, ε: as :func:`epsilon_text`, but rounded down."""
    return _rounded(value, digits, ROUND_FLOOR)


def _rounded(value: float | None, digits: int, way: str) -> str:
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    # Of the shortest decimal that the float stands for: 0.1 is not rounded up to 0.11.
    exact = Decimal(repr(float(value)))
    if abs(value) >= _LARGE:
        return f"{Context(prec=4, rounding=way).plus(exact):g}"
    plain = exact.quantize(Decimal(1).scaleb(-digits), rounding=way).normalize()
    return "0" if plain == 0 else f"{plain:f}"


def percent(value: float | None) -> str:
    """A share in 0…1 as "81.3%"."""
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:.1f}%"


def is_share(metric: str) -> bool:
    """Whether a task's metric is a share in 0…1; others (R², errors) have no such bounds."""
    return metric not in _NOT_SHARES


def metric_name(metric: str) -> str:
    """A metric's name in words: "micro_f1" as "micro F1"."""
    return _NAMES.get(metric, metric.replace("_", " ").replace(" f1", " F1"))


def capitalise(text: str) -> str:
    """With a large first letter; the rest as it is."""
    return text[:1].upper() + text[1:]


def metric_text(metric: str, value: float | None) -> str:
    """A metric's value: shares as "81.3%", others as "0.813"."""
    if is_share(metric):
        return percent(value)
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def change_text(metric: str, change: float) -> str:
    """A difference of two values, signed: shares in percentage points, others as they are."""
    return f"{100 * change:+.1f}" if is_share(metric) else f"{change:+.3f}"


def human_bytes(count: float | None) -> str:
    """Bytes in decimal units, "1.2 MB"."""
    if count is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float | None) -> str:
    """Seconds as "12.3 s", "3:05 min" or "2:03:05 h"."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def energy_text(joules: float | None) -> str:
    """Energy as "3.21 Wh" or "1.2 kWh"."""
    if joules is None or not math.isfinite(joules):
        return "–"
    hours = joules / 3600
    return f"{hours:.3g} Wh" if hours < 999.5 else f"{hours / 1000:.1f} kWh"
