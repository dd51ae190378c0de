"""How finely to discretise privacy losses: as accurate as needed, in bounded time and memory.

Only speed and tightness depend on this module. The accountant's discretisation is pessimistic at
any interval, so nothing here can make an ε too small.

Connect-the-dots moves the loss l of a step to the grid's neighbours of l, which adds the variance
h²·u·(1 - u), with interval h and l = (n + u)·h. At the order a where the Chernoff bound of the
composed loss is least, ε grows by about a/2 for every unit of variance that all steps add.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_USUAL = 1e-4  # interval, nats
_FINEST, _COARSEST = 1e-6, 1e6
_ERROR = 5e-4  # relative, of ε: what the interval may cost
_POINTS = 300_000  # of a distribution: above, the interval grows as far as _ERROR allows
_MOST_POINTS = 400_000  # above, it grows whatever that costs in ε
_TAIL = 35.0  # -log of the mass that the composed distribution may leave out
_REACH = 10.0  # standard deviations of the noise that a step's distribution covers
_SAMPLES = 2001
_ORDERS = np.geomspace(1e-3, 1e4, 48)


def interval_for(totals: Sequence[tuple[float, float, int]], delta: float) -> float:
    """The interval, in nats, to compose ``totals`` with: (σ, q, steps) each, σ and q above 0."""
    steps = [float(count) for _, _, count in totals]
    losses = [_step(sigma, rate) for sigma, rate, _ in totals]
    growth = sum(n * loss.growth for n, loss in zip(steps, losses, strict=True))
    fall = sum(n * loss.fall for n, loss in zip(steps, losses, strict=True))
    bounds = (growth - math.log(delta)) / _ORDERS
    best = int(np.argmin(bounds))
    scale = (1 + float(_ORDERS[best])) / 2 / max(float(bounds[best]), 1e-12)
    high, low = np.min((growth + _TAIL) / _ORDERS), -np.min((fall + _TAIL) / _ORDERS)
    width = max(float(high - low), *(loss.span for loss in losses))

    def error(interval: float) -> float:
        added = sum(n * loss.added(interval) for n, loss in zip(steps, losses, strict=True))
        return float(scale * added)

    interval = _USUAL
    while interval > 2 * _FINEST and error(interval) > _ERROR:
        interval /= 2
    while width / interval > _POINTS and error(2 * interval) <= _ERROR:
        interval *= 2
    while width / interval > _MOST_POINTS and interval < _COARSEST:
        interval *= 2
    return interval


def rough_epsilon(sigma: float, rate: float, steps: int, delta: float) -> float:
    """About the ε of one event by its Chernoff bound: to start a search from, not to state."""
    bounds = (float(steps) * _step(sigma, rate).growth - math.log(delta)) / _ORDERS
    return max(float(np.min(bounds)), 0.0)


@dataclass(frozen=True)
class _Step:
    """One step's privacy loss when a unit is removed, sampled along the noise."""

    values: np.ndarray
    weights: np.ndarray
    """Probabilities of ``values``; they add up to 1."""
    growth: np.ndarray
    """log E exp(a·loss) for every order a."""
    fall: np.ndarray
    """log E exp(-a·loss) for every order a."""

    @property
    def span(self) -> float:
        """Largest minus smallest loss, nats."""
        return float(self.values[-1] - self.values[0])

    def added(self, interval: float) -> float:
        """Variance that moving the loss to a grid's points adds, nats²."""
        part = np.mod(self.values / interval, 1.0)
        return float(interval**2 * (self.weights @ (part * (1 - part))))


@functools.lru_cache(maxsize=256)
def _step(sigma: float, rate: float) -> _Step:
    x = np.linspace(-_REACH * sigma, 1 + _REACH * sigma, _SAMPLES)
    absent = math.log1p(-rate) if rate < 1 else -math.inf
    values = np.logaddexp(absent, math.log(rate) + (2 * x - 1) / (2 * sigma**2))
    weights = np.exp(values - x**2 / (2 * sigma**2))
    weights /= weights.sum()
    with np.errstate(divide="ignore"):
        logs = np.log(weights)
    up = np.logaddexp.reduce(logs + _ORDERS[:, None] * values, axis=1)
    down = np.logaddexp.reduce(logs - _ORDERS[:, None] * values, axis=1)
    return _Step(values, weights, up, down)
