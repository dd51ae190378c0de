"""What an adapted model says of one record, by task."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class LabelSetPrediction:
    """Every label's own probability for one record."""

    labels: Sequence[str]
    probabilities: Sequence[float]
    """In the order of ``labels``, each in [0, 1]."""

    @property
    def chosen(self) -> list[str]:
        """The labels with a probability above one half, in the plan's order."""
        pairs = zip(self.labels, self.probabilities, strict=True)
        return [label for label, probability in pairs if probability > 0.5]

    @property
    def shown(self) -> str:
        """:attr:`chosen`, or "none"."""
        return ", ".join(self.chosen) or "none"

    @property
    def certainty(self) -> float | None:
        """None: there is a probability for every label."""
        return None

    def columns(self) -> dict[str, str]:
        """predicted_labels, a JSON list."""
        return {"predicted_labels": json.dumps(self.chosen, ensure_ascii=False)}

    def content(self) -> dict[str, Any]:
        """predicted_labels and all probabilities."""
        pairs = zip(self.labels, self.probabilities, strict=True)
        return {
            "predicted_labels": self.chosen,
            "probabilities": {label: round(p, 6) for label, p in pairs},
        }


@dataclass(frozen=True)
class NumberPrediction:
    """A number for one record."""

    value: float
    """In the target's unit."""

    @property
    def shown(self) -> str:
        """The number, to six digits."""
        return f"{self.value:.6g}"

    @property
    def certainty(self) -> float | None:
        """None: a number has no probability."""
        return None

    def columns(self) -> dict[str, str]:
        """predicted_value."""
        return {"predicted_value": self.shown}

    def content(self) -> dict[str, Any]:
        """predicted_value."""
        return {"predicted_value": self.value}


@dataclass(frozen=True)
class Entity:
    """A stretch of a text that is of one kind."""

    start: int
    """Place of the first character, from 0."""
    end: int
    """Place after the last character."""
    label: str
    text: str


@dataclass(frozen=True)
class EntitiesPrediction:
    """The entities in one text."""

    entities: Sequence[Entity]
    """In the order of the text."""

    @property
    def shown(self) -> str:
        """Kind and text of every entity, or "none"."""
        return "; ".join(f"{found.label}: {found.text}" for found in self.entities) or "none"

    @property
    def certainty(self) -> float | None:
        """None: a set of entities has no probability."""
        return None

    def columns(self) -> dict[str, str]:
        """predicted_entities, a JSON list."""
        return {"predicted_entities": json.dumps(self._listed(), ensure_ascii=False)}

    def content(self) -> dict[str, Any]:
        """predicted_entities: start, end, label and text of each."""
        return {"predicted_entities": self._listed()}

    def _listed(self) -> list[dict[str, Any]]:
        return [asdict(found) for found in self.entities]
