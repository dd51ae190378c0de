"""What the coordinator can tell of a round's updates: their mean, its noise, who agrees.

Everything here is worked out from what sites have noised and sent: it costs no epsilon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lorica.common.adapters import State
from lorica.common.plan import RunPlan
from lorica.common.site_privacy import public_privacy
from lorica.common.stages import Stage, stage_of, unit_bound

_SKETCH = 1 << 14  # values kept of each update; the error of a cosine is about 1/√_SKETCH


@dataclass(frozen=True)
class Measured:
    """What came of one round."""

    mean_norm: float | None = None
    """L2 norm of the weighted mean update."""
    noise_norm: float | None = None
    """Expected L2 norm of the privacy noise in it; None where the plan alone does not say."""
    signal_to_noise: float | None = None
    """√(max(0, mean² / noise² - 1)): the rest of the mean over the noise."""
    agreement: dict[str, float] | None = None
    """Site -> cosine of its update with the weighted mean of the others'."""


class RoundMeasures:
    """Takes a round's updates one by one, beside the aggregation rule.

    Of each update at most 16,384 numbers are kept: the update itself, or, when it is longer, its
    count sketch (Charikar, Chen and Farach-Colton 2002), which keeps inner products: cosines are
    then right to about ±0.01. The mean's norm is exact.

    With independent noise and no signal an agreement is 0 ± 1/√d, since a site's own noise is not
    in the mean that it is compared with.
    """

    def __init__(self, plan: RunPlan, round: int) -> None:
        """``round``: its number, from 1."""
        self._plan, self._round = plan, round
        self._sums = stage_of(plan, round) is not Stage.LOCAL
        self._total: torch.Tensor | None = None
        self._weight = 0.0
        self._sketches: dict[str, tuple[torch.Tensor, float]] = {}
        self._places: torch.Tensor | None = None
        self._signs: torch.Tensor | None = None

    def add(self, site: str, update: State, weight: float) -> None:
        """Take one update that the rule has accepted; of sums the weight plays no part."""
        weight = 1.0 if self._sums else weight
        flat = torch.cat([tensor.detach().float().flatten() for tensor in update.values()])
        if self._total is None:
            self._total = torch.zeros_like(flat)
        self._total.add_(flat, alpha=weight)
        self._weight += weight
        self._sketches[site] = (self._sketch(flat), weight)

    def finish(self) -> Measured:
        """What can be said of all updates taken."""
        if self._total is None or self._weight <= 0:
            return Measured()
        mean = float(torch.linalg.vector_norm(self._total, dtype=torch.float64)) / self._weight
        noise = self._noise(self._total.numel())
        ratio = None
        if noise:
            ratio = math.sqrt(max(0.0, (mean / noise) ** 2 - 1.0))
        return Measured(mean, noise, ratio, self._agreements())

    def _noise(self, values: int) -> float | None:
        plan = self._plan
        if not self._sums or not plan.privacy.private:
            return None
        sigma = public_privacy(plan).of_round(self._round).noise_multiplier
        deviation = sigma * unit_bound(plan, self._round)
        return deviation * math.sqrt(values / len(self._sketches))

    def _agreements(self) -> dict[str, float]:
        if len(self._sketches) < 2:
            return {}
        total = sum(weight * sketch for sketch, weight in self._sketches.values())
        found = {}
        for site, (sketch, weight) in self._sketches.items():
            others = total - weight * sketch
            length = float(sketch.norm()) * float(others.norm())
            if length > 0:
                cosine = float(sketch @ others) / length
                found[site] = min(1.0, max(-1.0, cosine))
        return found

    def _sketch(self, flat: torch.Tensor) -> torch.Tensor:
        flat = flat.double()
        if len(flat) <= _SKETCH:
            return flat
        if self._places is None or self._signs is None:
            generator = torch.Generator().manual_seed(self._round)
            self._places = torch.randint(_SKETCH, (len(flat),), generator=generator)
            signs = torch.randint(2, (len(flat),), generator=generator)
            self._signs = signs.double() * 2 - 1
        return torch.zeros(_SKETCH, dtype=torch.float64).index_add_(
            0, self._places, self._signs * flat
        )
