"""What noise that sites share proves: three figures of ε for one sum.

Formal guarantee:
    *Mechanism.* In a round, s sites' vectors are seen as their sum alone
    (:mod:`lorica.client.secure_sum.part`). Each site's vector is the sum of its drawn units'
    vectors on an integer grid, of L2 sensitivity S, plus N_Z(0, v) in every coordinate, with
    v >= σ²S²/h (:mod:`lorica.common.secure_sum.grid`). *Neighbouring relation*: one unit of one
    site added or removed.

    *Sampling.* Every site draws each of its units independently with the same probability q. That
    is Poisson sampling of the union of all units at q: which site a unit is at changes neither its
    chance nor anybody else's. So the sum is one Poisson-subsampled mechanism on the union, and a
    unit's own site, which is honest towards it, keeps secret whether it was drawn.

    *Three observers*, for whom the noise in the sum differs:

    - **sums**: the coordinator, and everybody who sees what comes of the sums, if no site colludes.
      At least t sites survived, so the noise has variance t·v: noise multiplier σ√(t/h).
    - **colluding**: the coordinator together with up to c = t - h of a round's sites, which take
      their own noise away. At least h shares are left: noise multiplier σ. This is what the plan
      promises; where nobody drops out of n sites, it holds for n - h colluders.
    - **alone**: everybody but the unit's own site colludes, or the other sites were invented. The
      site's own share is left: noise multiplier σ/√h.

    More sites only add to the noise. Other sites' vectors, known to an observer or not, are
    independent of the unit and so post-processing.

    *From integers to the accountant.* The accountant of record composes Gaussian mechanisms. With
    s shares, let W be the sum of s draws of N_Z(0, v). (1) W is within a factor exp(±η₁) of
    N_Z(0, sv), η₁ = 10 Σ_{k<s} exp(-2π²v·k/(k+1)) (Kairouz, Liu and Steinke 2021, arXiv
    2102.06387, on sums of discrete Gaussians, with their constant 5 doubled). (2) With
    V = sv, the chance that N(0, V) rounds to x is that of N_Z(0, V) times
    E_u exp(-xu/V - u²/2V), u uniform on [-1/2, 1/2], up to a factor of 1 + 3·exp(-2π²V): by
    Jensen's inequality at least exp(-1/(24V)), and, for E exp(-au) = sinh(a/2)/(a/2), at most
    exp(x²/(24V²)). For |x| <= 15√V that is within exp(±η₂), η₂ = 225/(24V). (3) The sum's true
    value is an integer, so adding a rounded Gaussian to it is rounding the Gaussian mechanism's
    output: post-processing. Hence all n coordinates of a run, released adaptively, are
    (ε', δ')-indistinguishable from rounded Gaussian mechanisms with noise multiplier √V/S, with
    ε' = η√(2n·ln(1/δ₀)) + nη(e^η - 1), η = η₁ + η₂ + 3·exp(-2π²V) (advanced composition), and
    δ' = δ₀ + 2n·exp(-112.5), the latter for |x| > 15√V. A run that the accountant finds (ε, δ) is
    (ε + 2ε', e^ε'·δ + (1 + e^(ε+ε'))·δ')-DP. :func:`distance` computes both; a plan's noise is
    calibrated to :func:`accounted`, a budget smaller by more than they can add, and a site refuses
    a sum for which that would not do (:func:`require_close`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lorica.common.errors import Code, LoricaError
from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.event import PrivacyEvent

Observer = Literal["sums", "colluding", "alone"]
OBSERVERS: tuple[Observer, ...] = ("sums", "colluding", "alone")

_EPSILON_SLACK = 1e-5  # nats, of a run
_DELTA_SLACK = 1e-4  # relative
_TAIL = 15.0  # standard deviations
_CONSTANT = 10.0


@dataclass(frozen=True)
class SharedNoise:
    """Among how many sites the noise of a sum is shared."""

    honest: int
    """h: so many sites' noise is what the plan promises."""
    threshold: int
    """t: fewest sites in a sum, at least h."""

    def __post_init__(self) -> None:
        if not 1 <= self.honest <= self.threshold:
            raise ValueError(f"no such shares: {self}")

    def seen_by(self, observer: Observer, event: PrivacyEvent) -> PrivacyEvent:
        """The plan's event, with the noise that is left for an observer; a bit's is its site's."""
        if event.response:
            return event
        shares = {"sums": self.threshold, "colluding": self.honest, "alone": 1}[observer]
        sigma = event.noise_multiplier * math.sqrt(shares / self.honest)
        return PrivacyEvent(sigma, event.sample_rate, event.steps)


OWN_NOISE = SharedNoise(1, 1)
"""Noise that is all a site's own: the same for every observer."""


@dataclass(frozen=True)
class Figures:
    """ε in nats, at one δ, for the three observers."""

    sums: float
    colluding: float
    alone: float


def figures(events: Iterable[PrivacyEvent], delta: float, shared: SharedNoise) -> Figures:
    """ε of all ``events`` composed, as each observer sees them.

    Args:
        events: as the plan promises them, that is with the noise of h sites.
        delta: δ in (0, 1).
        shared: h and t.
    """
    held = list(events)
    return Figures(
        *(epsilon([shared.seen_by(o, event) for event in held], delta) for o in OBSERVERS)
    )


def accounted(budget: float, delta: float) -> tuple[float, float]:
    """The (ε, δ) to calibrate noise to, so that the discrete mechanism keeps (budget, delta)."""
    if math.isinf(budget):
        return budget, delta
    return budget - min(_EPSILON_SLACK, budget / 1000), delta * (1 - _DELTA_SLACK)


def require_close(budget: float, delta: float, *, variance: int, honest: int, draws: int) -> None:
    """Return if what :func:`accounted` keeps back covers the distance to Gaussian mechanisms.

    Args:
        budget: the plan's ε.
        delta: its δ.
        variance: v, of one site's noise, steps².
        honest: h.
        draws: n, coordinates that the run releases in all.

    Raises:
        LoricaError: LOR-406 the grid is too coarse for so many draws.
    """
    if math.isinf(budget):
        return
    kept, kept_delta = accounted(budget, delta)
    target = delta * 1e-6 * math.exp(-min(budget, 600.0))
    apart, failing = distance(variance=variance, shares=honest, draws=draws, target=target)
    epsilon_left = budget - kept - 2 * apart
    delta_left = delta - math.exp(apart) * kept_delta
    if epsilon_left < 0 or (1 + math.exp(min(budget, 600.0))) * failing > delta_left:
        raise LoricaError(
            Code.PRIVACY_CALIBRATION,
            f"The integer grid of a sealed sum is too coarse for {draws:,} values in the run.",
            mend="Plan for fewer rounds, a smaller adapter, or fewer honest sites.",
        )


def distance(*, variance: int, shares: int, draws: int, target: float) -> tuple[float, float]:
    """ε' and δ' of the module's docstring.

    Args:
        variance: v.
        shares: s, how many draws make the noise of a sum.
        draws: n.
        target: δ₀.
    """
    if variance < 1:
        return math.inf, 1.0
    whole = float(shares * variance)
    sums = math.fsum(
        math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, min(shares, 64))
    ) + max(0, shares - 64) * math.exp(-2 * math.pi**2 * variance * 63 / 64)
    eta = _CONSTANT * sums + _TAIL**2 / (24 * whole) + 3 * math.exp(-2 * math.pi**2 * whole)
    apart = eta * math.sqrt(-2 * draws * math.log(target)) + draws * eta * math.expm1(eta)
    return apart, target + 2 * draws * math.exp(-(_TAIL**2) / 2)
