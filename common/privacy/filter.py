"""Privacy filters: whether one more mechanism fits a budget, whoever chose it in view of what.

A ledger outlives runs, and somebody who has seen the results of one chooses the parameters of the
next. Composition by PLD assumes parameters fixed beforehand; a *filter* does not: it looks at the
parameters of each mechanism before it runs, and stops when a fixed amount is used up.

Formal guarantee:
    *Claim.* Let mechanisms be chosen one after the other, by anybody, each in view of all earlier
    outputs, and each run only if :meth:`Filter.epsilon` of all of them, itself included, is at
    most ε. Then all outputs together are (ε, δ)-DP under the neighbouring relation of
    :class:`~lorica.common.privacy.event.PrivacyEvent`.

    *Proof for the Rényi part*, order α and probability δ₁ fixed beforehand. With x = dP/dQ of the
    transcript and ρ_i the divergence of order α of the i-th mechanism, x^α·exp(-(α-1)·Σρ_i) is a
    supermartingale under Q that begins at 1 (Feldman and Zrnic, "Individual Privacy Accounting via
    a Rényi Filter", 2021, theorem 3.1). As Σρ_i <= B always, E_Q[x^α] <= exp((α-1)·B), and from
    it follows (ε, δ₁)-DP as in :mod:`lorica.common.privacy.renyi`.

    *For the Gaussian part*, δ₂: mechanisms with Σ 1/σ_i² <= μ² are together μ-GDP, also when σ_i
    is chosen in view of earlier outputs (Smith and Thakurta, "Fully Adaptive Composition for
    Gaussian Differential Privacy", 2022, theorem 3.1), and sampling only makes a step more private.

    *Bits by randomised response* count in the Rényi part by their own divergence, in the Gaussian
    part as the Gaussian mechanism that they are post-processing of
    (:mod:`lorica.common.privacy.response`).

    *Together.* A mechanism runs if either part has room, so every transcript lies wholly within
    one. The hockey-stick divergence is a sum over transcripts, those of one part at most δ₁, those
    of the other at most δ₂, and δ₁ + δ₂ = δ.

    Order and shares are chosen by :func:`filter_for` from what is known before anything ran. It
    is no matter for privacy which; a good choice has room for more.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from lorica.common.privacy.accountant import precision_of
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.gaussian import gaussian_epsilon
from lorica.common.privacy.renyi import ORDERS, conversion, divergences_of

_GAUSSIAN_SHARE = 0.9  # of δ, where everything known beforehand uses all units


@dataclass
class Tally:
    """What mechanisms amount to, in the two currencies of a filter; grows by one at a time."""

    divergence: np.ndarray = field(default_factory=lambda: np.zeros(len(ORDERS)))
    """Σ D_α for every one of :data:`~lorica.common.privacy.renyi.ORDERS`."""
    precision: float = 0.0
    """Σ 1/σ², as if every step used all units."""

    def add(self, events: Iterable[PrivacyEvent]) -> None:
        """Count ``events`` in."""
        for event in events:
            if event.steps and event.sample_rate > 0:
                sigma = event.noise_multiplier
                self.divergence = self.divergence + event.steps * divergences_of(event)
                self.precision += event.steps * precision_of(sigma)

    def plus(self, events: Iterable[PrivacyEvent]) -> Tally:
        """Another tally, with ``events`` counted in."""
        found = Tally(self.divergence, self.precision)
        found.add(events)
        return found


@dataclass(frozen=True)
class Filter:
    """One filter with its parameters fixed."""

    delta: float
    """δ in (0, 1)."""
    order: int
    """Index in :data:`~lorica.common.privacy.renyi.ORDERS` of the Rényi part's order."""
    gaussian_share: float
    """Share of δ that the Gaussian part has, in [0, 1)."""

    def epsilon(self, tally: Tally) -> float:
        """The least budget, ε in nats, that has room for what was tallied; 0 for nothing, inf when
        a mechanism has no noise. Rises with everything that is added."""
        if tally.precision == 0:
            return 0.0
        if not math.isfinite(tally.precision):
            return math.inf
        rest = self.delta * (1 - self.gaussian_share)
        found = float(tally.divergence[self.order] + conversion(rest)[self.order])
        if self.gaussian_share:
            sigma = 1 / math.sqrt(tally.precision)
            found = min(found, gaussian_epsilon(sigma, self.delta * self.gaussian_share))
        return max(0.0, found)


@functools.lru_cache(maxsize=1024)
def filter_for(budget: float, delta: float, known: tuple[PrivacyEvent, ...]) -> Filter:
    """A filter that has room for as many repetitions of ``known`` as may be.

    Args:
        budget: ε that it will be held to, in nats; inf where there is none.
        delta: δ in (0, 1).
        known: what will run first, as it is fixed before anything ran.
    """
    whole = all(event.sample_rate == 1 and not event.response for event in known)
    share = _GAUSSIAN_SHARE if whole else 0.0
    tally = Tally()
    tally.add(known)
    room = conversion(delta * (1 - share))
    cost = np.where(np.isfinite(tally.divergence) & (tally.divergence > 0), tally.divergence, 1e300)
    if math.isinf(budget) or np.all(budget <= room):
        best = np.argmin(cost + room)
    else:
        best = np.argmax((budget - room) / cost)
    return Filter(delta, int(best), share)
