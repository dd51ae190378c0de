"""The answers to be judged: probabilities, the right labels, and the group of every record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorica.common.errors import Code, LoricaError


@dataclass(frozen=True)
class Answers:
    """What a classifier said of n records, and what is right."""

    labels: Sequence[str]
    """Names of the C labels, in the order of the columns of ``probabilities``."""
    probabilities: np.ndarray
    """float64, shape (n, C); rows sum to 1."""
    truth: np.ndarray
    """Number of the right label of every record, int64, shape (n,)."""

    @property
    def said(self) -> np.ndarray:
        """Number of the most probable label of every record, shape (n,)."""
        return self.probabilities.argmax(1)

    @property
    def sure(self) -> np.ndarray:
        """Probability of that label, shape (n,)."""
        return self.probabilities.max(1)

    @property
    def right(self) -> np.ndarray:
        """Whether it is the right one, shape (n,)."""
        return self.said == self.truth

    def take(self, rows: np.ndarray) -> Answers:
        """These records alone."""
        return Answers(self.labels, self.probabilities[rows], self.truth[rows])


def answers(
    labels: Sequence[str], probabilities: Sequence[Sequence[float]], truth: Sequence[str]
) -> Answers:
    """Answers of names.

    Args:
        labels: names of the labels, C.
        probabilities: of every record, in their order, shape (n, C).
        truth: the right label of every record.

    Raises:
        LoricaError: LOR-306 a right answer that is none of the labels; LOR-308 no records.
    """
    if not len(truth):
        raise LoricaError(Code.DATA_TOO_FEW_RECORDS, "There is no record to judge the adapter by.")
    numbers = {name: number for number, name in enumerate(labels)}
    unknown = sorted({name for name in truth if name not in numbers})
    if unknown:
        more = ", …" if len(unknown) > 5 else ""
        raise LoricaError(
            Code.DATA_UNKNOWN_LABEL,
            f"{', '.join(repr(name) for name in unknown[:5])}{more} is no label of the adapter.",
        )
    return Answers(
        labels,
        np.asarray(probabilities, dtype=np.float64),
        np.array([numbers[name] for name in truth], dtype=np.int64),
    )
