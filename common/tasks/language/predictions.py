"""What an adapted language model says of one record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TextPrediction:
    """An answer in words."""

    text: str

    @property
    def shown(self) -> str:
        """The answer on one line."""
        return " ".join(self.text.split())

    @property
    def certainty(self) -> None:
        """An answer in words has none."""

    def columns(self) -> dict[str, str]:
        """answer."""
        return {"answer": self.text}

    def content(self) -> dict[str, Any]:
        """answer."""
        return {"answer": self.text}


@dataclass(frozen=True)
class FillPrediction:
    """The likeliest tokens for every gap of one text."""

    gaps: Sequence[Sequence[tuple[str, float]]]
    """Per gap, tokens with their probabilities, best first."""

    @property
    def shown(self) -> str:
        """The best token of every gap."""
        return " ".join(gap[0][0] for gap in self.gaps)

    @property
    def certainty(self) -> float:
        """Probability of the best token of the least certain gap."""
        return min(gap[0][1] for gap in self.gaps)

    def columns(self) -> dict[str, str]:
        """filled and probability."""
        return {"filled": self.shown, "probability": f"{self.certainty:.6f}"}

    def content(self) -> dict[str, Any]:
        """filled and, per gap, tokens with their probabilities."""
        gaps = [{token: round(chance, 6) for token, chance in gap} for gap in self.gaps]
        return {"filled": self.shown, "gaps": gaps}
