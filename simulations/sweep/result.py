"""One result of a sweep."""

from __future__ import annotations

from dataclasses import dataclass

SEED = "simulation.seed"

Value = str | int | float


@dataclass(frozen=True)
class Result:
    """What came of one run."""

    variant: str
    at: dict[str, Value]
    headline: str
    """The task's metric that runs are compared by."""
    score: float
    """Its value after the last round."""
    accuracy: float | None
    """For tasks that have it."""
    loss: float | None
    zero_shot: float
    """The score before training."""
    epsilon: float | str
    """Largest over the sites, nats."""
    bytes_up: int
    """By one site in the whole run."""
    bytes_down: int
    """To one site in the whole run."""
    seconds: float
    peak_rss_bytes: int
    fingerprint: str
