"""Whether probabilities mean what they say, and a temperature that makes them do so.

The expected calibration error (ECE; Naeini et al. 2015, Guo et al. 2017, arXiv 1706.04599) is
Σ_b (n_b / n) |accuracy_b - confidence_b| over equally wide bins of the top probability. Dividing
the logits by a temperature T, which changes no answer, is fitted by the log loss on records that
the error is then not reported on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from lorica.common.saved.quality.answers import Answers

BINS = 15
_TINY = 1e-12
_LOWEST, _HIGHEST = 0.05, 20.0


@dataclass(frozen=True)
class Bin:
    """The answers whose top probability lies in one bin."""

    low: float
    high: float
    records: int
    confidence: float
    """Mean top probability; 0 where there are no records."""
    accuracy: float
    """Share that is right; 0 where there are no records."""


def reliability(given: Answers, bins: int = BINS) -> list[Bin]:
    """The reliability curve over ``bins`` equally wide bins."""
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.clip(np.ceil(given.sure * bins).astype(int) - 1, 0, bins - 1)
    found = []
    for number in range(bins):
        inside = place == number
        count = int(inside.sum())
        found.append(
            Bin(
                float(edges[number]),
                float(edges[number + 1]),
                count,
                float(given.sure[inside].mean()) if count else 0.0,
                float(given.right[inside].mean()) if count else 0.0,
            )
        )
    return found


def calibration_error(given: Answers, bins: int = BINS) -> float:
    """ECE, in [0, 1]."""
    parts = reliability(given, bins)
    total = sum(part.records for part in parts)
    return sum(part.records / total * abs(part.accuracy - part.confidence) for part in parts)


def with_temperature(given: Answers, temperature: float) -> Answers:
    """The same answers with their logits divided by ``temperature``, which is above 0."""
    scaled = np.log(given.probabilities.clip(_TINY)) / temperature
    scaled -= scaled.max(1, keepdims=True)
    spread = np.exp(scaled)
    return Answers(given.labels, spread / spread.sum(1, keepdims=True), given.truth)


def fitted_temperature(given: Answers) -> float:
    """The temperature in [0.05, 20] with the least log loss on these records."""

    def loss(logarithm: float) -> float:
        scaled = with_temperature(given, float(np.exp(logarithm))).probabilities
        chosen = scaled[np.arange(len(given.truth)), given.truth]
        return float(-np.log(chosen.clip(_TINY)).mean())

    bounds = (float(np.log(_LOWEST)), float(np.log(_HIGHEST)))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


@dataclass(frozen=True)
class Calibrated:
    """A temperature and what it does to records it was not fitted on."""

    temperature: float
    before: float
    """ECE of the other records as they come."""
    after: float
    """ECE of the same records with the temperature."""
    fitted_on: int
    """Number of records it was fitted on."""


def calibrated(given: Answers, *, seed: int = 0, share: float = 0.5) -> Calibrated | None:
    """A temperature fitted on a share of the records and judged on the rest; None where a side
    would be empty."""
    order = np.random.default_rng(seed).permutation(len(given.truth))
    cut = round(share * len(order))
    if not 0 < cut < len(order):
        return None
    temperature = fitted_temperature(given.take(order[:cut]))
    rest = given.take(order[cut:])
    return Calibrated(
        temperature,
        calibration_error(rest),
        calibration_error(with_temperature(rest, temperature)),
        cut,
    )
