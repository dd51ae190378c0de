"""When to trust an answer: thresholds for a wanted recall or precision, and abstention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.metrics import precision_recall_curve

from lorica.common.errors import Code, LoricaError
from lorica.common.saved.quality.answers import Answers

Wanted = Literal["recall", "precision"]


@dataclass(frozen=True)
class Threshold:
    """A label is said where its probability is at least ``threshold``."""

    label: str
    threshold: float
    recall: float
    precision: float


def threshold_for(given: Answers, label: str, wanted: Wanted, least: float) -> Threshold:
    """The threshold that reaches the wanted figure and costs least of the other.

    Args:
        given: the answers.
        label: a label's name.
        wanted: "recall" or "precision".
        least: what it must be at least, in (0, 1].

    Raises:
        LoricaError: LOR-306 no such label; LOR-103 no threshold reaches it, or ``least`` is none.
    """
    if label not in given.labels:
        raise LoricaError(Code.DATA_UNKNOWN_LABEL, f"{label!r} is no label of the adapter.")
    if not 0 < least <= 1:
        raise LoricaError(Code.PLAN_BAD_VALUE, f"A wanted {wanted} lies in (0, 1], got {least:g}.")
    positive = given.truth == list(given.labels).index(label)
    if not positive.any():
        raise LoricaError(Code.DATA_UNKNOWN_LABEL, f"No record has the label {label!r}.")
    scores = given.probabilities[:, list(given.labels).index(label)]
    precision, recall, thresholds = precision_recall_curve(positive, scores)
    first, second = (recall, precision) if wanted == "recall" else (precision, recall)
    able = np.flatnonzero(first[:-1] >= least)
    if not len(able):
        raise LoricaError(
            Code.PLAN_BAD_VALUE,
            f"No threshold reaches a {wanted} of {least:g} for {label!r}; the highest is "
            f"{first[:-1].max():.3f}.",
        )
    best = able[np.lexsort((thresholds[able], second[:-1][able]))[-1]]
    return Threshold(label, float(thresholds[best]), float(recall[best]), float(precision[best]))


@dataclass(frozen=True)
class Coverage:
    """Accuracy where the surest share of records is answered and the rest is left to people."""

    share: float
    """Of records that are answered."""
    threshold: float
    """The least top probability among them."""
    accuracy: float


def coverages(
    given: Answers, shares: tuple[float, ...] = (1.0, 0.9, 0.8, 0.7, 0.5)
) -> list[Coverage]:
    """What abstention buys, by the share of records that is answered."""
    order = np.argsort(-given.sure, kind="stable")
    right = given.right[order]
    found = []
    for share in shares:
        count = max(1, round(share * len(order)))
        found.append(
            Coverage(share, float(given.sure[order[count - 1]]), float(right[:count].mean()))
        )
    return found
