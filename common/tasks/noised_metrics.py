"""Evaluation at sites: noised counts on the wire, and what the coordinator makes of them.

Layout of the released vector: the number of units, then the parts that the plan's task names
(:meth:`lorica.common.tasks.base.Task.released`), in their order.

Formal guarantee:
    *Neighbouring relation*: one unit added or removed. A unit adds the mean over its records of
    (1, contributions), cut to norm Δ. The norm of a record's values in each part is bounded by
    the part's ``norm``, a mean keeps that bound, and so Δ = √(1 + Σ norm²) cuts nothing that a
    task computes rightly, and bounds what one computes wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lorica.common.plan import RunPlan
from lorica.common.privacy.of_plan import public_privacy
from lorica.common.tasks import task_of
from lorica.common.tasks.base import SiteMetrics
from lorica.common.wire.declared import believed_units

MOST_UNITS = 1e12
"""A site that counts more is not believed: its vector is left out."""

_CHANCE = 20.0  # standard deviations of noise: far beyond it


def vector_length(plan: RunPlan) -> int:
    """Number of values in a released vector."""
    return 1 + sum(part.width for part in task_of(plan).released())


def sensitivity(plan: RunPlan) -> float:
    """Largest L2 norm of one unit's contribution to the vector."""
    return math.sqrt(1 + sum(part.norm**2 for part in task_of(plan).released()))


def believable(plan: RunPlan, vector: Sequence[float], declared: int) -> bool:
    """Whether a site may have counted that: no value beyond what ten times the units that it
    declares (:data:`MOST_UNITS` where it declares 0) and the noise can give. Without it, one site
    could outvote all others by counting units that nobody has.
    """
    units = believed_units(declared, MOST_UNITS)
    most = sensitivity(plan) * units + _CHANCE * _noise_std(plan)
    return all(abs(value) <= most for value in vector)  # also refuses NaN


def combine(plan: RunPlan, vectors: Sequence[Sequence[float]]) -> SiteMetrics | None:
    """Metrics over all sites from their released vectors; None when the noise drowns the count
    of units (it is below three standard deviations).

    Post-processing of what was noised at the sites.
    """
    sane = [vector for vector in vectors if max(map(abs, vector)) <= MOST_UNITS]
    total = np.sum(np.array(sane, dtype=np.float64), axis=0) if sane else np.zeros(1)
    return of_total(plan, total, float(len(sane)))


def of_total(plan: RunPlan, total: np.ndarray, shares: float) -> SiteMetrics | None:
    """The same from the vectors' sum.

    Args:
        plan: the run.
        total: shape (:func:`vector_length`,).
        shares: the variance of its noise, in units of one release's that the plan promises.
    """
    count, noise = float(total[0]), _noise_std(plan) * math.sqrt(shares)
    if count < max(1.0, 3.0 * noise):
        return None
    task, parts, place = task_of(plan), {}, 1
    for part in task.released():
        parts[part.name] = total[place : place + part.width]
        place += part.width
    return task.site_metrics(parts, count, noise)


def _noise_std(plan: RunPlan) -> float:
    """Standard deviation of the noise on every value of one site's vector."""
    event = public_privacy(plan).evaluation
    return event.noise_multiplier * sensitivity(plan) if event else 0.0


def f1_of(hits: float, wrong: float, missed: float) -> float:
    """2·hits / (2·hits + wrong + missed); 0 where nothing is there to find."""
    total = 2 * hits + wrong + missed
    return min(2 * hits / total, 1.0) if total > 0 else 0.0


def ratio(part: float, whole: float) -> float:
    """part / whole, cut to [0, 1]; 0 where the whole is not above 0."""
    return min(max(part / whole, 0.0), 1.0) if whole > 0 else 0.0
