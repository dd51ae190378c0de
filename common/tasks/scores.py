"""Ratios of counts that may be noised, and so be 0 or impossible."""

from __future__ import annotations


def f1_of(hits: float, wrong: float, missed: float) -> float:
    """2·hits / (2·hits + wrong + missed); 0 where nothing is there to find."""
    total = 2 * hits + wrong + missed
    return min(2 * hits / total, 1.0) if total > 0 else 0.0


def ratio(part: float, whole: float) -> float:
    """part / whole, cut to [0, 1]; 0 where the whole is not above 0."""
    return min(max(part / whole, 0.0), 1.0) if whole > 0 else 0.0
