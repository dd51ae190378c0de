"""Arithmetic of discretised privacy losses that never understates: compose, coarsen, cut, read.

Formal guarantee:
    For every ε the hockey-stick divergence δ(ε) of a result is at least that of the exact
    mechanism, under the neighbouring relation of
    :class:`~lorica.common.privacy.event.PrivacyEvent` (add or remove one unit), in both
    directions:

    * A step's loss distribution comes from dp-accounting with connect-the-dots discretisation,
      which dominates the true one.
    * *Coarsening* moves mass p at loss l to its grid neighbours a <= l <= b so that Σp and
      Σp·exp(-l) stay what they were. The hockey-stick divergence at ε is the mean of
      max(0, 1 - exp(ε)·t) with t = exp(-l), convex in t, and such a split is a mean-preserving
      spread in t: no δ(ε) falls. Dominance is kept by composition.
    * *Truncation* moves a left tail up to the lowest loss kept and a right tail to infinite
      loss. The whole tail bound is added to the infinite loss at every composition, which also
      pays for the rounding of the Fourier transform.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.step_loss import step_loss

_FINEST, _COARSEST = 2.0**-20, 2.0**-10  # grid of one step, nats; powers of two so grids nest
_PER_STEP, _MOST_PER_STEP, _PER_BLOCK = 8, 2000, 200  # grid points per standard deviation


@dataclass(frozen=True)
class Loss:
    """Privacy loss of one direction on a grid: mass ``masses[i]`` at (lower + i) · interval."""

    interval: float
    lower: int
    masses: np.ndarray
    infinity: float
    """Mass at infinite loss."""

    @property
    def variance(self) -> float:
        """Variance of the finite losses, nats²."""
        losses = (self.lower + np.arange(len(self.masses))) * self.interval
        total = float(self.masses.sum())
        mean = float(losses @ self.masses) / total
        return float(((losses - mean) ** 2) @ self.masses) / total


@dataclass(frozen=True)
class Block:
    """Composed loss of a stretch of events, for removing and for adding one unit."""

    remove: Loss
    add: Loss

    @property
    def deviation(self) -> float:
        """The larger standard deviation of the two directions, nats."""
        return math.sqrt(max(self.remove.variance, self.add.variance))

    @property
    def nbytes(self) -> int:
        """Memory, bytes."""
        return int(self.remove.masses.nbytes + self.add.masses.nbytes)


def coarsen(loss: Loss, interval: float) -> Loss:
    """The loss on a grid that is a whole multiple coarser; dominates the given one.

    Source: Doroshenko et al., "Connect the Dots: Tighter Discrete Approximations of Privacy Loss
    Distributions" (2022), applied to a distribution that is discrete already.
    """
    factor = round(interval / loss.interval)
    if factor <= 1:
        return loss
    index = loss.lower + np.arange(len(loss.masses))
    below = index // factor
    share = np.expm1((below * factor - index) * loss.interval) / np.expm1(-interval)
    slot, size = below - below[0], int(below[-1] - below[0]) + 2
    masses = np.bincount(slot, loss.masses * (1 - share), size)
    masses += np.bincount(slot + 1, loss.masses * share, size)
    return Loss(interval, int(below[0]), masses, loss.infinity)


def leaf(event: PrivacyEvent, tail: float) -> Block:
    """The loss of one event, its tails of mass ``tail`` cut."""
    loss = _step_loss(event.noise_multiplier, event.sample_rate)
    loss = loss.self_compose(event.steps)
    return _settled(_block_of(loss), tail)


def compose(blocks: list[Block], tail: float) -> Block:
    """All ``blocks`` composed (at least one), tails of mass ``tail`` cut at every step."""
    if len(blocks) == 1:
        return blocks[0]
    spread = math.sqrt(sum(block.deviation**2 for block in blocks))
    interval = max([_grid(spread / _PER_BLOCK), *(block.remove.interval for block in blocks)])
    total, *others = sorted(blocks, key=lambda block: block.deviation)
    for other in others:
        total = Block(
            _convolve(coarsen(total.remove, interval), coarsen(other.remove, interval), tail),
            _convolve(coarsen(total.add, interval), coarsen(other.add, interval), tail),
        )
    return total


def _settled(block: Block, tail: float) -> Block:
    """Tails cut and the grid as coarse as the block's spread allows."""
    interval = max(_grid(block.deviation / _PER_BLOCK), block.remove.interval)
    return Block(
        cut(coarsen(block.remove, interval), tail), cut(coarsen(block.add, interval), tail)
    )


def _convolve(one: Loss, other: Loss, tail: float) -> Loss:
    from scipy.signal import oaconvolve

    masses = np.maximum(oaconvolve(one.masses, other.masses), 0.0)
    infinity = one.infinity + other.infinity - one.infinity * other.infinity
    return cut(Loss(one.interval, one.lower + other.lower, masses, infinity), tail)


def cut(loss: Loss, tail: float) -> Loss:
    """The loss without the outermost ``tail``/2 of mass on either side; dominates the given."""
    masses = loss.masses
    left = int(np.searchsorted(np.cumsum(masses), tail / 2, "right"))
    right = len(masses) - int(np.searchsorted(np.cumsum(masses[::-1]), tail / 2, "right"))
    left = min(left, len(masses) - 1)
    right = max(right, left + 1)
    kept = masses[left:right].copy()
    kept[0] += masses[:left].sum()
    return Loss(loss.interval, loss.lower + left, kept, min(1.0, loss.infinity + tail))


def read(block: Block, delta: float) -> float:
    """ε at ``delta`` of a composed block, by dp-accounting; the worse of the two directions."""
    from dp_accounting.pld import pld_pmf

    found = 0.0
    for loss in (block.remove, block.add):
        first = max(0, 1 - loss.lower)  # losses of at most 0 add nothing to δ(ε) for ε >= 0
        masses = loss.masses[first:] if first < len(loss.masses) else np.zeros(1)
        lower = loss.lower + first
        pmf = pld_pmf.DensePLDPmf(loss.interval, lower, masses, loss.infinity, True)
        found = max(found, float(pmf.get_epsilon_for_delta(delta)))
    return found


@functools.lru_cache(maxsize=64)
def _step_loss(sigma: float, rate: float) -> Any:
    deviation = step_deviation(sigma, rate)
    coarsest = max(_COARSEST, _grid(deviation / _MOST_PER_STEP))  # tiny σ must not fill memory
    interval = min(coarsest, max(_FINEST, _grid(deviation / _PER_STEP)))
    return step_loss(sigma, rate, interval)


def _block_of(loss: Any) -> Block:
    parts = []
    for pmf in (loss._pmf_remove, loss._pmf_add):
        masses = np.maximum(np.asarray(pmf._probs, dtype=np.float64), 0.0)
        parts.append(Loss(pmf._discretization, pmf._lower_loss, masses, pmf._infinity_mass))
    return Block(*parts)


def step_deviation(sigma: float, rate: float) -> float:
    """About the standard deviation of one step's loss, nats; never far above the true one."""
    return min(rate * math.sqrt(math.expm1(min(sigma**-2, 50.0))), 1 / sigma)


def _grid(width: float) -> float:
    """The largest power of two not above ``width``; the finest grid for widths of nothing."""
    return 2.0 ** math.floor(math.log2(width)) if width > _FINEST else _FINEST
