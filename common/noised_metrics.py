"""Evaluation at sites: noised counts on the wire, and what the coordinator makes of them.

Layout of the released vector, C labels, in this order: number of units; correct ("accuracy");
loss ("loss"); units per label (C) and correct per label (C) ("per_label"). Parts that the plan
does not ask for are absent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lorica.common.plan import RunPlan
from lorica.common.site_privacy import public_privacy

LOSS_BOUND = 8.0
"""Cross-entropy of a record is cut at this many nats, and divided by it, before it is summed."""

MOST_UNITS = 1e12
"""A site that counts more is not believed: its vector is left out."""

_BAND = 1.96  # standard deviations of a 95 % band


def vector_length(plan: RunPlan) -> int:
    """Number of values in a released vector."""
    wanted = plan.privacy.evaluation_metrics
    per_label = 2 * len(plan.task.labels) if "per_label" in wanted else 0
    return 1 + ("accuracy" in wanted) + ("loss" in wanted) + per_label


def sensitivity(plan: RunPlan) -> float:
    """Largest L2 norm of one unit's contribution to the vector.

    A unit adds the mean over its records. Every scalar part lies in [0, 1]. Its shares of labels
    are at least 0 and sum to 1, so their L2 norm is at most 1, and so is that of its correct
    shares by label.
    """
    wanted = plan.privacy.evaluation_metrics
    parts = 1 + ("accuracy" in wanted) + ("loss" in wanted) + 2 * ("per_label" in wanted)
    return math.sqrt(parts)


@dataclass(frozen=True)
class SiteMetrics:
    """Quality by the sites' own, noised counts."""

    accuracy: float | None
    accuracy_band: float | None
    """Half-width of a 95 % band for the noise (not for the sampling of records)."""
    loss: float | None
    """Mean cross-entropy, cut at ``LOSS_BOUND`` nats per record."""
    per_label: dict[str, float]
    """Accuracy by label; empty when not asked for."""


def combine(plan: RunPlan, vectors: Sequence[Sequence[float]]) -> SiteMetrics | None:
    """Metrics over all sites from their released vectors; None when the noise drowns the count
    of units (it is below three standard deviations).

    Post-processing of what was noised at the sites.
    """
    sane = [vector for vector in vectors if max(map(abs, vector)) <= MOST_UNITS]
    total = np.sum(np.array(sane, dtype=np.float64), axis=0) if sane else np.zeros(1)
    count, noise = float(total[0]), _noise_std(plan) * math.sqrt(len(sane))
    if count < max(1.0, 3.0 * noise):
        return None
    wanted = plan.privacy.evaluation_metrics
    place = 1
    accuracy = band = loss = None
    if "accuracy" in wanted:
        accuracy = min(max(float(total[place]) / count, 0.0), 1.0)
        band = _BAND * noise * math.sqrt(1 + accuracy**2) / count
        place += 1
    if "loss" in wanted:
        loss = max(float(total[place]) / count, 0.0) * LOSS_BOUND
        place += 1
    per_label: dict[str, float] = {}
    if "per_label" in wanted:
        names = plan.task.labels
        units, correct = total[place : place + len(names)], total[place + len(names) :]
        ratio = np.clip(correct / np.maximum(units, 1.0), 0.0, 1.0)
        per_label = {name: float(value) for name, value in zip(names, ratio, strict=True)}
    return SiteMetrics(accuracy, band, loss, per_label)


def _noise_std(plan: RunPlan) -> float:
    """Standard deviation of the noise on every value of one site's vector."""
    event = public_privacy(plan).evaluation
    return event.noise_multiplier * sensitivity(plan) if event else 0.0
