"""The privacy loss of one Poisson-subsampled Gaussian step, as a discrete distribution.

dp-accounting's own ``from_gaussian_mechanism`` asks for the loss's inverse one point at a time, in
Python, which is most of its work. Here all points are asked for at once; bounds, cumulative
distributions and discretisation are dp-accounting's. Tests hold the result to its own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dp_accounting.pld.pld_pmf import PLDPmf
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
    from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss


def step_loss(sigma: float, rate: float, interval: float) -> PrivacyLossDistribution:
    """The loss of one step of :class:`lorica.common.privacy.event.PrivacyEvent`.

    Formal guarantee:
        With P and Q the step's output distributions with and without one unit, the returned
        distributions (unit removed; unit added) dominate the losses of (P, Q) and (Q, P): their
        hockey-stick divergences are nowhere below the true δ(ε), and equal it at the multiples
        of ``interval`` up to rounding ("connect the dots", arXiv 2207.04380, algorithm 1).

    Args:
        sigma: noise multiplier σ, above 0.
        rate: q in (0, 1].
        interval: of the grid, nats.
    """
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
    from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType

    removed = _discretised(sigma, rate, interval, AdjacencyType.REMOVE)
    if rate == 1:
        return PrivacyLossDistribution(removed)
    return PrivacyLossDistribution(removed, _discretised(sigma, rate, interval, AdjacencyType.ADD))


def _discretised(sigma: float, rate: float, interval: float, adjacency: Any) -> PLDPmf:
    from dp_accounting.pld.pld_pmf import create_pmf_pessimistic_connect_dots_fixed_gap
    from dp_accounting.pld.privacy_loss_mechanism import GaussianPrivacyLoss

    loss = GaussianPrivacyLoss(sigma, sampling_prob=rate, adjacency_type=adjacency)
    bounds = loss.connect_dots_bounds()
    low = math.floor(bounds.epsilon_lower / interval)
    high = math.ceil(bounds.epsilon_upper / interval)
    deltas = _deltas(loss, sigma, interval * np.arange(low, high + 1))
    found = create_pmf_pessimistic_connect_dots_fixed_gap(interval, low, high, deltas)
    # Composed in its sparse form, a distribution of few points takes time without bound.
    return found.to_dense_pmf()


def _deltas(loss: GaussianPrivacyLoss, sigma: float, epsilons: np.ndarray) -> np.ndarray:
    """δ(ε) at every ε, (n,). The loss falls with the noise x, so that δ(ε) is
    P(x <= c) - exp(ε) Q(x <= c) at the x = c whose loss is ε.

    A step's loss is never below log(1 - q) when a unit is removed, nor above -log(1 - q) when one
    is added: beyond, c is infinite.
    """
    from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType

    rate = loss.sampling_prob
    least = math.log1p(-rate) if rate < 1 else -math.inf
    adds = loss.adjacency_type == AdjacencyType.ADD
    losses = -epsilons if adds else epsilons  # of the step with a unit removed, at ±c
    reached = losses > least
    # Without sampling the loss there would be log((exp(l) - (1 - q)) / q).
    unsampled = losses[reached] - math.log(rate) + np.log(-np.expm1(least - losses[reached]))
    cut = -0.5 - unsampled * sigma**2
    deltas = np.zeros(len(epsilons)) if adds else -np.expm1(np.minimum(epsilons, 0.0))
    cut = -cut if adds else cut
    deltas[reached] = loss.mu_upper_cdf(cut) - np.exp(
        epsilons[reached] + loss.mu_lower_log_cdf(cut)
    )
    return np.clip(deltas, 0.0, 1.0)
