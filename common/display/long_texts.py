"""What people are told of texts that are longer than what is read of them."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class LongTexts:
    """What is said of long texts; the fields stand in summary.json, too."""

    share: float = 0.0
    """Of all records, those whose text is longer than what is read of it."""
    max_length: int = 0
    """Tokens that are read of a text at most, special tokens included."""
    bound: str = "training.max_length"
    """What bounds it, in words."""
    kept: str = ""
    """What is kept of a longer text, in words."""
    promised: int = 0
    """Tokens of the longest text that the model's own files name (those of
    sentence-transformers); 0: they name none."""
    beyond: float = 0.0
    """Of all records, those of which more is read than ``promised``."""

    @property
    def sentence(self) -> str:
        """What there is to say, to follow "of the texts"; "" when there is nothing."""
        said = []
        if self.share:
            said.append(
                f"{_percent(self.share)} are longer than {self.bound} ({self.max_length:,} tokens) "
                f"and were cut to their {self.kept}"
                + (
                    f" (the model was made for up to {self.promised:,} tokens)"
                    if self.promised > self.max_length
                    else ""
                )
            )
        if self.beyond:
            said.append(
                f"{_percent(self.beyond)} are read beyond the {self.promised:,} tokens that the "
                "model's own files name as the longest text it was made for "
                f"(training.max_length={self.promised} keeps to them)"
            )
        return "; ".join(said)


def _percent(share: float) -> str:
    """Rounded up: a few are not none."""
    return f"{math.ceil(100 * share - 1e-9)} %"
