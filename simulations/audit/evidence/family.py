"""The mechanisms that a site may have run, by their noise: the hypotheses of the audit.

A plan says with which rate q and for how many steps T the Poisson-subsampled Gaussian mechanism
runs, and σ follows from ε. The *family* is that mechanism for every σ. H_σ says "the site's
training leaks no more than with noise multiplier σ". The larger σ, the more H_σ claims, so from
the least σ that is rejected on all are; ε of that σ is the audited lower bound.

Where a run has stages with noise of their own, the family is the composition of all their steps
with every σ_i multiplied by one factor s (:class:`Stages`), and s takes the place of σ.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorica.common.privacy.event import PrivacyEvent
from lorica.simulations.audit.evidence.bounds import PrivacyCurve

_LEAST, _MOST = 1 / 4, 64.0  # σ is sought from a quarter of the claimed to 64 times that
_TOLERANCE = 2e-3  # relative, of σ
_GRID = np.concatenate([np.arange(0, 20, 0.05), np.arange(20, 80, 0.25)])  # ε of a curve
_INTERVAL = 2e-3  # of one step's privacy loss


class Kin(ABC):
    """A claimed mechanism and its kin, from least to most noise."""

    delta: float
    """δ at which ε is stated."""
    claimed_noise: float
    """The figure for the noise that the site claims; 0 is none, twice the figure twice the std."""

    @property
    @abstractmethod
    def described(self) -> str:
        """In words, but for the noise."""

    @abstractmethod
    def _loss(self, noise: float, *, pessimistic: bool) -> Any:
        """The privacy loss distribution at a figure for the noise."""

    def curve(self, noise: float) -> PrivacyCurve:
        """δ(ε) at noise figure ``noise``, from above (pessimistic discretisation)."""
        return _curve(self, noise)

    def epsilon(self, noise: float) -> float:
        """ε at δ from *below* (optimistic discretisation): what is shown to be spent is no
        rounding of ours. Less than the accountant's by a per cent or so."""
        loss = self._loss(noise, pessimistic=False)
        return max(0.0, float(loss.get_epsilon_for_delta(self.delta)))

    def bound(self, rejects: Callable[[PrivacyCurve], bool]) -> float:
        """ε of the least σ whose curve is rejected, sought between a quarter of the claimed noise
        and 64 times that: at most the ε of the former, 0 when not even the latter is rejected.

        Args:
            rejects: true for a curve that the observations refute; if for one, then for every
                lower one.
        """
        low = math.log(self.claimed_noise * _LEAST)
        if rejects(self.curve(math.exp(low))):
            return self.epsilon(math.exp(low))
        high = low
        while not rejects(self.curve(math.exp(high))):
            low, high = high, high + math.log(2.0)
            if high > math.log(self.claimed_noise * _MOST):
                return 0.0
        while high - low > _TOLERANCE:
            middle = (low + high) / 2
            low, high = (low, middle) if rejects(self.curve(math.exp(middle))) else (middle, high)
        return self.epsilon(math.exp(high))


@dataclass(frozen=True)
class Family(Kin):
    """The Poisson-subsampled Gaussian mechanism with a fixed rate and number of steps."""

    sample_rate: float
    """q."""
    steps: int
    """T, over the whole run."""
    delta: float
    """δ at which ε is stated."""
    claimed_noise: float
    """σ that the site claims."""

    @classmethod
    def of(cls, round_event: PrivacyEvent, rounds: int, delta: float) -> Family:
        """The family of a run of so many rounds."""
        return cls(
            round_event.sample_rate,
            round_event.steps * rounds,
            delta,
            round_event.noise_multiplier,
        )

    @property
    def described(self) -> str:
        return (
            f"{self.steps} steps of the Poisson-subsampled Gaussian mechanism with rate "
            f"{self.sample_rate:.4g}"
        )

    def _loss(self, noise: float, *, pessimistic: bool) -> Any:
        return _composed([(noise, self.sample_rate, self.steps)], pessimistic)


@dataclass(frozen=True)
class Stages(Kin):
    """Steps of several (σ_i, q_i) composed, each σ_i multiplied by one factor.

    The steps with q = 1 are exactly one Gaussian mechanism, whose 1/σ² is Σ T_i/σ_i².
    """

    events: tuple[PrivacyEvent, ...]
    """What the site claims to run."""
    delta: float
    """δ at which ε is stated."""
    claimed_noise: float = 1.0
    """The factor that stands for the claimed noise: 1."""

    @property
    def described(self) -> str:
        parts = (f"{e.steps} with rate {e.sample_rate:.4g}" for e in self.events)
        return (
            f"steps of the Poisson-subsampled Gaussian mechanism ({' and '.join(parts)}) with "
            "noise in the claimed proportions"
        )

    def _loss(self, noise: float, *, pessimistic: bool) -> Any:
        parts = [
            (noise * event.noise_multiplier, event.sample_rate, event.steps)
            for event in self.events
            if event.sample_rate < 1.0
        ]
        whole = sum(e.steps / e.noise_multiplier**2 for e in self.events if e.sample_rate == 1.0)
        if whole:
            parts.append((noise / math.sqrt(whole), 1.0, 1))
        return _composed(parts, pessimistic)


@functools.lru_cache(maxsize=64)
def _curve(kin: Kin, noise: float) -> PrivacyCurve:
    loss = kin._loss(noise, pessimistic=True)
    grid = list(_GRID)
    added = np.asarray(loss._pmf_add.get_delta_for_epsilon(grid))
    removed = np.asarray(loss._pmf_remove.get_delta_for_epsilon(grid))
    return PrivacyCurve(_GRID, (added + removed) / 2)


def _composed(parts: Sequence[tuple[float, float, int]], pessimistic: bool) -> Any:
    """Steps of (σ, q), so many of each, on the finest grid that one of them asks for."""
    from dp_accounting.pld import privacy_loss_distribution

    def steps(noise: float, rate: float, count: int) -> Any:
        one = privacy_loss_distribution.from_gaussian_mechanism(
            noise,
            value_discretization_interval=interval,
            sampling_prob=rate,
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,  # the tighter discretisation is for upper bounds only
        )
        return one.self_compose(count)

    interval = min(max(1e-4, min(_INTERVAL, rate / noise / 20)) for noise, rate, _ in parts)
    return functools.reduce(lambda a, b: a.compose(b), [steps(*part) for part in parts])
