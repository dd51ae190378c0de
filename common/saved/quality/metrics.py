"""Metrics of class predictions with confidence intervals; scikit-learn's, never our own.

An interval is the bootstrap's percentile interval (Efron and Tibshirani 1993): records are drawn
with replacement, and the metric is worked out on every draw. Records that belong together (the
notes of one patient) are drawn together, where their unit is given; taking them for independent
would make intervals too narrow.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    matthews_corrcoef,
    precision_recall_fscore_support,
    roc_auc_score,
)

from lorica.common.saved.quality.answers import Answers

DRAWS = 1000
_LEVEL = 0.95
_TINY = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A metric and its interval."""

    value: float
    low: float
    high: float


Metric = Callable[[Answers], float]


def _log_loss(given: Answers) -> float:
    clipped = given.probabilities.clip(_TINY)
    clipped = clipped / clipped.sum(1, keepdims=True)
    return float(log_loss(given.truth, clipped, labels=range(len(given.labels))))


METRICS: dict[str, Metric] = {
    "accuracy": lambda given: float(accuracy_score(given.truth, given.said)),
    "balanced accuracy": lambda given: float(balanced_accuracy_score(given.truth, given.said)),
    "macro F1": lambda given: float(
        f1_score(
            given.truth, given.said, average="macro", labels=np.unique(given.truth), zero_division=0
        )
    ),
    "Matthews correlation": lambda given: float(matthews_corrcoef(given.truth, given.said)),
    "log loss": _log_loss,
}
"""Metric -> how it is worked out. Macro F1 is over the labels that occur among right answers."""


def estimates(
    given: Answers,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    units: Sequence[str] | None = None,
    metrics: Sequence[str] = tuple(METRICS),
) -> dict[str, Estimate]:
    """Metrics with intervals of 95 %.

    Args:
        given: the answers.
        draws: number of bootstrap draws; 0 gives intervals of no width.
        seed: of the draws.
        units: the unit of every record, where records belong together.
        metrics: names of :data:`METRICS`.
    """
    random = np.random.default_rng(seed)
    members = _members(units, len(given.truth))
    found: dict[str, list[float]] = {name: [] for name in metrics}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a draw may lack a label
        for _ in range(draws):
            drawn = random.integers(0, len(members), len(members))
            part = given.take(np.concatenate([members[place] for place in drawn]))
            for name in metrics:
                found[name].append(METRICS[name](part))
        values = {name: METRICS[name](given) for name in metrics}
    tails = 100 * (1 - _LEVEL) / 2
    made = {}
    for name, value in values.items():
        spread = found[name] or [value]
        low, high = np.nanpercentile(spread, [tails, 100 - tails])
        made[name] = Estimate(value, float(low), float(high))
    return made


@dataclass(frozen=True)
class LabelQuality:
    """One label."""

    label: str
    precision: float
    recall: float
    f1: float
    records: int
    auc: float | None
    """Area under the ROC curve of this label against the rest; None where one side is empty."""


def by_label(given: Answers) -> list[LabelQuality]:
    """Quality label by label, in the plan's order."""
    numbers = range(len(given.labels))
    precision, recall, f1, support = precision_recall_fscore_support(
        given.truth, given.said, labels=numbers, zero_division=0
    )
    return [
        LabelQuality(
            name,
            float(precision[number]),
            float(recall[number]),
            float(f1[number]),
            int(support[number]),
            _auc(given, number),
        )
        for number, name in enumerate(given.labels)
    ]


def confusion(given: Answers) -> np.ndarray:
    """Records by right label (rows) and said label (columns), int64, shape (C, C)."""
    return np.asarray(confusion_matrix(given.truth, given.said, labels=range(len(given.labels))))


def _auc(given: Answers, number: int) -> float | None:
    positive = given.truth == number
    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, given.probabilities[:, number]))


def _members(units: Sequence[str] | None, count: int) -> list[np.ndarray]:
    """Records of every unit."""
    if units is None:
        return list(np.arange(count)[:, None])
    _, owner = np.unique(np.asarray(units, dtype=object).astype(str), return_inverse=True)
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(owner[order])) + 1)
