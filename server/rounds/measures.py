"""What the coordinator can tell of a round's updates: their mean, its noise, who agrees.

Everything here is worked out from what sites have noised and sent: it costs no epsilon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from lorica.common.adapter.state import State
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import Stage, stage_of, unit_bound
from lorica.common.privacy.of_plan import public_privacy
from lorica.server.rounds.alike import MOST, Alike, alike

_MOST_KEPT = 1 << 14  # values kept of an update
_LEAST_KEPT = 1 << 8
_ROWS = 64  # updates compared at a time
_KEPT_TOGETHER = 1 << 22  # values kept of all updates of a round, 4 bytes each


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
    alike: Alike | None = None
    """Of a round of class sums: every two sites, in the order in which they were added."""


class RoundMeasures:
    """Takes a round's updates one by one, beside the aggregation rule.

    Of each update at most k numbers are kept: the update itself, or, when it is longer, its count
    sketch (Charikar, Chen and Farach-Colton 2002), which keeps inner products: the standard error
    of a cosine c is then (1 - c²)/√k. The sites share 16 MiB: k is 16,384 (an error of at most
    0.008) up to 256 sites, 4,194 (0.015) for 1,000, 419 (0.05) for 10,000, and never below 256
    (0.0625). The mean's norm is exact.

    With independent noise and no signal an agreement is 0 ± 1/√d, since a site's own noise is not
    in the mean that it is compared with.
    """

    def __init__(self, plan: RunPlan, round: int, sites: int) -> None:
        """
        Args:
            plan: the run's.
            round: its number, from 1.
            sites: how many are asked; no more can be added.
        """
        self._plan, self._round = plan, round
        self._kept = min(_MOST_KEPT, max(_LEAST_KEPT, _KEPT_TOGETHER // max(1, sites)))
        self._sums = stage_of(plan, round) is not Stage.LOCAL
        self._total: torch.Tensor | None = None
        self._weight = 0.0
        self._shares = 0.0  # of a sealed sum
        self._sites = sites
        self._weights: dict[str, float] = {}
        self._sketches: torch.Tensor | None = None  # (sites, k): many small ones would scatter
        self._places: torch.Tensor | None = None
        self._signs: torch.Tensor | None = None

    def add(self, site: str, update: State, weight: float) -> None:
        """Take one update that the rule has accepted; of sums the weight plays no part."""
        weight = 1.0 if self._sums else weight
        flat = torch.cat([tensor.detach().float().flatten() for tensor in update.values()])
        if self._total is None or self._sketches is None:
            self._total = torch.zeros_like(flat)
            self._sketches = torch.empty(self._sites, min(len(flat), self._kept))
        self._total.add_(flat, alpha=weight)
        self._weight += weight
        self._sketches[len(self._weights)] = self._sketch(flat)
        self._weights[site] = weight

    def add_sum(self, total: State, *, sites: int, shares: float) -> None:
        """Take a sealed sum over so many sites, with so many times the noise of one release that
        the plan promises; nothing of a single site is known."""
        flat = torch.cat([tensor.detach().float().flatten() for tensor in total.values()])
        self._total, self._weight, self._shares = flat, float(sites), shares

    def finish(self) -> Measured:
        """What can be said of all updates taken."""
        if self._total is None or self._weight <= 0:
            return Measured()
        mean = float(torch.linalg.vector_norm(self._total, dtype=torch.float64)) / self._weight
        noise = self._noise(self._total.numel())
        ratio = None
        if noise:
            ratio = math.sqrt(max(0.0, (mean / noise) ** 2 - 1.0))
        return Measured(mean, noise, ratio, self._agreements(), self._alike())

    def _alike(self) -> Alike | None:
        count = len(self._weights)
        if stage_of(self._plan, self._round) is not Stage.CLASS_SUMS or not 1 < count <= MOST:
            return None
        assert self._sketches is not None and self._total is not None
        return alike(self._sketches[:count], self._total.numel(), self._deviation())

    def _deviation(self) -> float:
        """Of the noise in every value of one release of a sum, as the plan alone says."""
        if not self._plan.privacy.private:
            return 0.0
        sigma = public_privacy(self._plan).of_round(self._round).noise_multiplier
        return sigma * unit_bound(self._plan, self._round)

    def _noise(self, values: int) -> float | None:
        plan = self._plan
        if not self._sums or not plan.privacy.private:
            return None
        deviation = self._deviation()
        if self._shares:
            return deviation * math.sqrt(values * self._shares) / self._weight
        return deviation * math.sqrt(values / len(self._weights))

    def _agreements(self) -> dict[str, float]:
        if self._sketches is None or len(self._weights) < 2:
            return {}
        kept = self._sketches[: len(self._weights)]
        weights = torch.tensor(list(self._weights.values()), dtype=torch.float64)
        total = torch.zeros(kept.shape[1], dtype=torch.float64)
        for rows in range(0, len(kept), _ROWS):
            total += weights[rows : rows + _ROWS] @ kept[rows : rows + _ROWS].double()
        cosines = []
        for rows in range(0, len(kept), _ROWS):
            own = kept[rows : rows + _ROWS].double()
            others = total - weights[rows : rows + _ROWS, None] * own
            length = own.norm(dim=1) * others.norm(dim=1)
            cosines += ((own * others).sum(1) / length).tolist()  # not a number where it is 0
        return {
            site: min(1.0, max(-1.0, cosine))
            for site, cosine in zip(self._weights, cosines, strict=True)
            if math.isfinite(cosine)
        }

    def _sketch(self, flat: torch.Tensor) -> torch.Tensor:
        """What is kept of an update: float32. As many of its values are added up in every place,
        or one less, so that two share one less often than by places drawn for each."""
        if len(flat) <= self._kept:
            return flat
        if self._places is None or self._signs is None:
            generator = torch.Generator().manual_seed(self._round)
            shape = math.ceil(len(flat) / self._kept), self._kept
            places = torch.randperm(shape[0] * shape[1], generator=generator)
            signs = torch.randint(2, places.shape, generator=generator) * 2.0 - 1.0
            signs[places >= len(flat)] = 0.0  # no value of the update
            self._places, self._signs = places.clamp(max=len(flat) - 1), signs.view(shape)
        return (flat.index_select(0, self._places).view_as(self._signs) * self._signs).sum(0)
