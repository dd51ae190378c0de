"""The mechanisms that a site may have run, by their noise: the hypotheses of the audit.

A plan says with which rate q and for how many steps T the Poisson-subsampled Gaussian mechanism
runs, and σ follows from ε. The *family* is that mechanism for every σ. H_σ says "the site's
training leaks no more than with noise multiplier σ". The larger σ, the more H_σ claims, so from
the least σ that is rejected on all are; ε of that σ is the audited lower bound.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorica.common.accounting import PrivacyEvent
from lorica.simulations.audit.bounds import PrivacyCurve

_LEAST, _MOST = 1 / 4, 64.0  # σ is sought from a quarter of the claimed to 64 times that
_TOLERANCE = 2e-3  # relative, of σ
_GRID = np.concatenate([np.arange(0, 20, 0.05), np.arange(20, 80, 0.25)])  # ε of a curve
_INTERVAL = 2e-3  # of one step's privacy loss


@dataclass(frozen=True)
class Family:
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

    def curve(self, noise: float) -> PrivacyCurve:
        """δ(ε) at noise multiplier ``noise``, from above (pessimistic discretisation)."""
        return _curve(noise, self.sample_rate, self.steps)

    def epsilon(self, noise: float) -> float:
        """ε at δ from *below* (optimistic discretisation): what is shown to be spent is no
        rounding of ours. Less than the accountant's by a per cent or so."""
        loss = _loss(noise, self.sample_rate, self.steps, pessimistic=False)
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


@functools.lru_cache(maxsize=64)
def _curve(noise: float, rate: float, steps: int) -> PrivacyCurve:
    loss = _loss(noise, rate, steps, pessimistic=True)
    grid = list(_GRID)
    added = np.asarray(loss._pmf_add.get_delta_for_epsilon(grid))
    removed = np.asarray(loss._pmf_remove.get_delta_for_epsilon(grid))
    return PrivacyCurve(_GRID, (added + removed) / 2)


def _loss(noise: float, rate: float, steps: int, *, pessimistic: bool) -> Any:
    from dp_accounting.pld import privacy_loss_distribution

    one = privacy_loss_distribution.from_gaussian_mechanism(
        noise,
        value_discretization_interval=max(1e-4, min(_INTERVAL, rate / noise / 20)),
        sampling_prob=rate,
        pessimistic_estimate=pessimistic,
        use_connect_dots=pessimistic,  # the tighter discretisation exists for upper bounds only
    )
    return one.self_compose(steps)
