"""What an adapted model says of one record, by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ClassPrediction:
    """Probabilities of all labels for one record."""

    labels: Sequence[str]
    probabilities: Sequence[float]
    """In the order of ``labels``; they sum to 1."""

    @property
    def label(self) -> str:
        """The most probable label."""
        return self.labels[max(range(len(self.labels)), key=self.probabilities.__getitem__)]

    @property
    def probability(self) -> float:
        """Probability of :attr:`label`."""
        return max(self.probabilities)

    @property
    def shown(self) -> str:
        """:attr:`label`."""
        return self.label

    @property
    def certainty(self) -> float:
        """:attr:`probability`."""
        return self.probability

    def top(self, count: int) -> list[tuple[str, float]]:
        """The ``count`` most probable labels with their probabilities, best first."""
        pairs = zip(self.labels, self.probabilities, strict=True)
        return sorted(pairs, key=lambda pair: -pair[1])[:count]

    def columns(self) -> dict[str, str]:
        """predicted_label and probability."""
        return {"predicted_label": self.label, "probability": f"{self.probability:.6f}"}

    def content(self) -> dict[str, Any]:
        """predicted_label, probability and all probabilities."""
        return {
            "predicted_label": self.label,
            "probability": round(self.probability, 6),
            "probabilities": {label: round(p, 6) for label, p in self.top(10**9)},
        }
