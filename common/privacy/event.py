"""PrivacyEvent: what one kind of step costs, in the figures that every accountant reads."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lorica.common.errors import Code, LoricaError
from lorica.common.privacy.response import response_noise

_COUNTABLE = 2**53  # steps that float64 still counts one by one


@dataclass(frozen=True)
class PrivacyEvent:
    """``steps`` runs of the Poisson-subsampled Gaussian mechanism.

    Formal guarantee:
        Each step draws every unit independently with probability ``sample_rate`` (q), sums
        vectors of L2 norm at most C over the drawn units, and adds N(0, (``noise_multiplier``
        · C)²) to every coordinate. Neighbouring data sets differ by adding or removing one
        unit, so the sum's L2 sensitivity is C. σ = 0 means no privacy.

        Where ``response`` is above 0 each step is one bit by randomised response
        (:mod:`lorica.common.privacy.response`), which is ``response``-DP, and post-processing of
        the Gaussian mechanism that the other figures say. So who overlooks it overstates ε.

    Raises:
        ValueError: a figure that no mechanism has (σ < 0, q outside [0, 1], steps < 0, NaN, a bit
            with other figures than its ε's).
        LoricaError: LOR-406 more steps than can be counted.
    """

    noise_multiplier: float
    """σ: standard deviation of the noise divided by the clip norm."""
    sample_rate: float
    """q: probability of a unit to be in a step's batch."""
    steps: int
    """Number of steps, each with fresh sampling and noise."""
    response: float = 0.0
    """ε of one bit by randomised response, in nats; 0: the step is no such bit."""

    def __post_init__(self) -> None:
        if not (
            0 <= self.noise_multiplier < math.inf and 0 <= self.sample_rate <= 1 and self.steps >= 0
        ):
            raise ValueError(f"no such mechanism: {self}")
        if self.response:
            noise = response_noise(self.response)  # raises for what is no ε of a bit
            if self.sample_rate != 1 or not math.isclose(self.noise_multiplier, noise):
                raise ValueError(f"no such bit: {self}")
        if self.steps > _COUNTABLE:
            raise LoricaError(
                Code.PRIVACY_CALIBRATION, f"More than {_COUNTABLE:,} steps cannot be accounted."
            )

    @staticmethod
    def of_response(epsilon: float) -> PrivacyEvent:
        """One bit by randomised response. Raises ValueError where ε is no bit's."""
        return PrivacyEvent(response_noise(epsilon), 1.0, 1, epsilon)


def told(events: Iterable[PrivacyEvent]) -> float:
    """ε of all bits by randomised response among ``events``, added up."""
    return sum(event.response * event.steps for event in events)
